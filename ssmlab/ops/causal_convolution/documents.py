"""Causal convolution inside each document of packed rows, exactly, by recursive halving.

Rows are [batch, channels, shared, time], filters [channels, 1, taps].  A pair of input and output is either inside one base block, where
lags are summed one by one under a mask, or is separated by the border between the halves of exactly one block of some level.  At most one
document spans that border, so the left half's tokens of that document, convolved into the right half's, are an ordinary convolution.
"""

import jax
import jax.numpy as jnp

from ssmlab.ops.causal_convolution import fourier

_BASES = (16, 18, 20, 24, 25, 27, 30, 32)          # sizes of base blocks; all multiples by 2^k have fast FFTs, and one of them is close above


def convolve(u: jax.Array, h: jax.Array, document: jax.Array) -> jax.Array:
  """y[t] = sum over j <= t of the same document of h[t - j] u[j].

  u: zero where there is padding.  document: int32 [batch, time], not decreasing (see ops.segments.documents).
  """
  time = u.shape[-1]
  total, base = min((size << max(-(-time // size) - 1, 0).bit_length(), size) for size in _BASES)
  u = jnp.pad(u, ((0, 0),) * 3 + ((0, total - time),))
  document = jnp.pad(document, ((0, 0), (0, total - time)), mode='edge')[:, None, None]
  y = _inside(u, h, document, base)
  half = base
  while half < total and h.shape[-1] > 1:
    y = y + _level(u, h, document, half)
    half *= 2
  return y[..., :time]


def _inside(u: jax.Array, h: jax.Array, document: jax.Array, base: int) -> jax.Array:
  """The lags inside base blocks."""
  place = jnp.arange(u.shape[-1])
  y = h[..., :1] * u
  for k in range(1, min(base, h.shape[-1])):
    late = lambda x: jnp.pad(x[..., :-k], ((0, 0),) * 3 + ((k, 0),))
    y = y + jnp.where((late(document) == document) & (place % base >= k), h[..., k:k + 1] * late(u), 0)
  return y


def _level(u: jax.Array, h: jax.Array, document: jax.Array, half: int) -> jax.Array:
  """From the left to the right halves of blocks of 2 * half tokens."""
  width = min(half, h.shape[-1] - 1)                      # a short filter reaches no further over the border
  split = lambda x: x.reshape(x.shape[:-1] + (-1, 2 * half))
  cut = lambda x: (split(x)[..., half - width:half], split(x)[..., half:half + width])
  (left, _), (before, behind) = cut(u), cut(document)
  left = jnp.where(before == behind[..., :1], left, 0)
  right = _across(left, h[..., None, :2 * width])
  right = jnp.where(behind == before[..., -1:], right, 0)
  return jnp.pad(right, ((0, 0),) * 4 + ((half, half - width),)).reshape(u.shape)


def _across(left: jax.Array, h: jax.Array) -> jax.Array:
  return fourier.across(left, h)
