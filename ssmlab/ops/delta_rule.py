"""The delta rule, with or without decay: how DeltaNet, Gated DeltaNet and Kimi Delta Attention set the matrix-state recurrence."""

import jax
import jax.numpy as jnp

from ssmlab.ops.linear_recurrence import linear_recurrence

EPS = 1e-6


def unit_length(x: jax.Array) -> jax.Array:
  """x / sqrt(sum x^2 + 1e-6) over the last axis: the authors' L2 norm, whose epsilon stands inside the root.  Result in x's dtype."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return (wide * jax.lax.rsqrt(jnp.sum(wide * wide, axis=-1, keepdims=True) + EPS)).astype(x.dtype)


def delta_rule(q: jax.Array, k: jax.Array, v: jax.Array, beta: jax.Array, log_decay: jax.Array | None = None,
               initial: jax.Array | None = None, segment_ids: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
  """S[t] = (I - beta k k^T) diag(exp g) S[t-1] + beta k (x) v,  o[t] = S[t]^T q / sqrt(key), with q and k made of unit length.

  q, k: [batch, time, key heads, key].  v: [batch, time, heads, value]; heads a multiple of key heads: value head h reads and writes with
    key head h // (heads / key heads).
  beta: [batch, time, heads], strength of the write: in [0, 1], or in [0, 2], where I - beta k k^T has negative eigenvalues.
  log_decay: g, <= 0: [batch, time, heads], [batch, time, heads, key], or None for no decay.
  initial: [batch, heads, key, value] or None.  segment_ids: int32 [batch, time] or None.
  Returns (o [batch, time, heads, value] in v's dtype, final state float32).  Raises ValueError where the heads do not divide.
  Source: Yang et al., arXiv 2406.06484, eq. 3, and 2412.06464, eq. 10; the erasure acts on the state that has already decayed.
  """
  key_heads, heads = q.shape[2], v.shape[2]
  if heads % key_heads:
    raise ValueError(f'v has {heads} heads, not a multiple of the {key_heads} heads of q and k')
  wide = jnp.promote_types(v.dtype, jnp.float32)
  q, k = (jnp.repeat(unit_length(x.astype(wide)), heads // key_heads, axis=2) for x in (q, k))
  write = beta.astype(wide)[..., None] * k
  erased = -k
  if log_decay is not None:
    decay = jnp.exp(log_decay.astype(wide))
    erased = erased * (decay if log_decay.ndim == 4 else decay[..., None])
  return linear_recurrence(q * q.shape[-1] ** -0.5, write, v, log_decay, a=erased, b=write, initial=initial, segment_ids=segment_ids)
