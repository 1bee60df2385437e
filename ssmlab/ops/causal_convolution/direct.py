"""Causal convolution by its definition, lag by lag.  Rows are [batch, channels, shared, time], filters [channels, 1, taps]."""

import jax
import jax.numpy as jnp

_UNROLLED = 32          # more taps than this go through a loop, which compiles in constant time


def forward(u: jax.Array, h: jax.Array, document: jax.Array | None = None) -> jax.Array:
  """y[t] = sum_k h[k] u[t - k], over the same document's tokens.  document: int32 [batch, time] or None, equal inside a document only."""
  late = _late(u, h.shape[-1], document)
  if h.shape[-1] <= _UNROLLED:
    return sum(h[..., k:k + 1] * late(k) for k in range(h.shape[-1]))
  lag = lambda k, y: y + jax.lax.dynamic_slice_in_dim(h, k, 1, axis=-1) * late(k)
  return jax.lax.fori_loop(0, h.shape[-1], lag, h[..., :1] * jnp.zeros_like(u))


def backward(u: jax.Array, h: jax.Array, document: jax.Array | None, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
  """du[j] = sum_k h[k] dy[j + k] and dh[k] = sum over batch, shared axes and t of dy[t] u[t - k]."""
  du = jnp.flip(forward(jnp.flip(dy, -1), h, None if document is None else jnp.flip(document, -1)), -1)
  late = _late(u, h.shape[-1], document)
  return du, jax.lax.map(lambda k: jnp.sum(dy * late(k), axis=(0, 2, 3)), jnp.arange(h.shape[-1])).T[:, None]


def _late(u: jax.Array, taps: int, document: jax.Array | None):
  """k -> u[t - k], zero where there is none or it is another document's."""
  earlier = lambda x, fill: jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((taps, 0),), constant_values=fill)
  cut = lambda line, k: jax.lax.dynamic_slice_in_dim(line, taps - k, u.shape[-1], axis=-1)
  inputs = earlier(u, 0)
  if document is None:
    return lambda k: cut(inputs, k)
  document = document[:, None, None]
  documents = earlier(document, -1)
  return lambda k: jnp.where(cut(documents, k) == document, cut(inputs, k), 0)
