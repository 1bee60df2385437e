"""Causal convolution by FFT, and its gradient.  Rows are [batch, channels, shared, time], filters [channels, 1, taps]."""

import jax
import jax.numpy as jnp


def fast_length(least: int) -> int:
  """The smallest 2^a 3^b 5^c that is at least `least`: lengths with large prime factors take 3 to 8 times as long."""
  best = 1 << max(least - 1, 0).bit_length()
  fives = 1
  while fives < best:
    threes = fives
    while threes < best:
      twos = threes << max(-(-least // threes) - 1, 0).bit_length()
      best = min(best, twos)
      threes *= 3
    fives *= 5
  return best


def forward(u: jax.Array, h: jax.Array, document: None = None) -> jax.Array:
  """y[t] = sum_j h[t - j] u[j].  The length leaves room for every lag: a shorter one would be circular."""
  time, n = u.shape[-1], fast_length(u.shape[-1] + h.shape[-1] - 1)
  spectrum = jnp.fft.rfft(u, n) * jnp.fft.rfft(h, n)
  return jnp.fft.irfft(spectrum, n)[..., :time]


def backward(u: jax.Array, h: jax.Array, document: None, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
  """du[j] = sum_t h[t - j] dy[t] and dh[k] = sum over batch, shared axes and t of dy[t] u[t - k]."""
  (time, taps), n = (u.shape[-1], h.shape[-1]), fast_length(u.shape[-1] + h.shape[-1] - 1)
  spectrum = jnp.fft.rfft(dy, n)
  du = jnp.fft.irfft(spectrum * jnp.conj(jnp.fft.rfft(h, n)), n)[..., :time]
  dh = jnp.sum(spectrum * jnp.conj(jnp.fft.rfft(u, n)), axis=(0, 2))
  return du, jnp.fft.irfft(dh, n)[:, None, :taps]


@jax.custom_vjp
def across(left: jax.Array, h: jax.Array) -> jax.Array:
  """What `width` inputs give to the `width` outputs right behind them: out[j] = sum_k left[k] h[width + j - k].

  left: [..., width].  h: [..., at most 2 width taps], with as many axes.  A length of 2 width is enough: what wraps around falls on the first half.
  """
  width = left.shape[-1]
  n = fast_length(2 * width)
  return jnp.fft.irfft(jnp.fft.rfft(left, n) * jnp.fft.rfft(h, n), n)[..., width:2 * width]


def _across_gradient(saved, dy):
  left, h = saved
  width = left.shape[-1]
  n = fast_length(2 * width)
  spectrum = jnp.fft.rfft(jnp.pad(dy, ((0, 0),) * (dy.ndim - 1) + ((width, 0),)), n)
  dleft = jnp.fft.irfft(spectrum * jnp.conj(jnp.fft.rfft(h, n)), n)[..., :width]
  shared = tuple(axis for axis in range(-dy.ndim, -1) if axis < -h.ndim or h.shape[axis] == 1)
  dh = jnp.sum(spectrum * jnp.conj(jnp.fft.rfft(left, n)), axis=shared, keepdims=True)
  return dleft, jnp.fft.irfft(dh, n)[..., :h.shape[-1]].reshape(h.shape)


across.defvjp(lambda left, h: (across(left, h), (left, h)), _across_gradient)
