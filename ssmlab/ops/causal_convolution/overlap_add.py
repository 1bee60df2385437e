"""Causal convolution of a long input with a short filter, by FFTs of blocks.

Rows are [batch, channels, shared, time], filters [channels, 1, taps].
"""

import jax
import jax.numpy as jnp

from ssmlab.ops.causal_convolution.fourier import fast_length


def _sizes(time: int, taps: int) -> tuple[int, int]:
  """(length of the FFT, inputs per block): about three times as many inputs as taps."""
  n = fast_length(min(4 * taps, time + taps - 1))
  return n, n - taps + 1


def _blocks(x: jax.Array, size: int) -> jax.Array:
  """[..., time] -> [..., blocks, size], zeros behind the end."""
  blocks = -(-x.shape[-1] // size)
  x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, blocks * size - x.shape[-1]),))
  return x.reshape(x.shape[:-1] + (blocks, size))


def forward(u: jax.Array, h: jax.Array, document: None = None) -> jax.Array:
  """y[t] = sum_j h[t - j] u[j]: every block's convolution is longer than the block, and its end is added to the next blocks' beginnings."""
  time = u.shape[-1]
  n, size = _sizes(time, h.shape[-1])
  pieces = jnp.fft.irfft(jnp.fft.rfft(_blocks(u, size), n) * jnp.fft.rfft(h, n)[..., None, :], n)
  kept, tail = pieces[..., :size], pieces[..., size:]
  while tail.shape[-1]:                                   # more than once only where a block is shorter than the filter
    late = jnp.pad(tail[..., :-1, :size], ((0, 0),) * 3 + ((1, 0), (0, max(size - tail.shape[-1], 0))))
    kept, tail = kept + late, jnp.pad(tail[..., :-1, size:], ((0, 0),) * 3 + ((1, 0), (0, 0)))
  return kept.reshape(u.shape[:-1] + (-1,))[..., :time]


def backward(u: jax.Array, h: jax.Array, document: None, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
  """du[j] = sum_t h[t - j] dy[t] and dh[k] = sum over batch, shared axes and t of dy[t] u[t - k], a block of u against dy up to taps - 1 later."""
  time, taps = u.shape[-1], h.shape[-1]
  n, size = _sizes(time, taps)
  du = jnp.flip(forward(jnp.flip(dy, -1), h), -1)
  inputs = _blocks(u, size)
  starts = size * jnp.arange(inputs.shape[-2])
  line = jnp.pad(dy, ((0, 0),) * 3 + ((0, inputs.shape[-2] * size + taps - 1 - time),))
  windows = jax.vmap(lambda at: jax.lax.dynamic_slice_in_dim(line, at, n, axis=-1), out_axes=-2)(starts)
  dh = jnp.sum(jnp.fft.rfft(windows, n) * jnp.conj(jnp.fft.rfft(inputs, n)), axis=(0, 2, 3))
  return du, jnp.fft.irfft(dh, n)[:, None, :taps]
