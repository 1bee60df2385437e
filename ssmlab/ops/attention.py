"""Causal softmax attention over packed documents, with a key/value cache.  Attention Is All You Need, arXiv 1706.03762, eq. 1.

Grouped heads (arXiv 2305.13245): query head h reads key/value head h // (heads / kv_heads).
"""

from typing import Any

import jax
import jax.numpy as jnp

from ssmlab.ops import segments


def attend(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool = True, window: int | None = None,
           segment_ids: jax.Array | None = None) -> jax.Array:
  """softmax(q k^T / sqrt(head_dim) + mask) v of one whole sequence.

  q: [batch, time, heads, head_dim].  k, v: [batch, time, kv_heads, head_dim].
  window: each query sees the last `window` keys, itself included (and as many later ones where not causal).
  segment_ids: int32 [batch, time]; a token sees its own document only; padding sees padding, so that no row is empty.
  Returns [batch, time, heads, head_dim] in v's dtype.  Raises ValueError where kv_heads does not divide heads.
  """
  _check_heads(q, k)
  local = None if window is None else (window - 1, 0 if causal else window - 1)
  mask = None
  if segment_ids is not None:
    run = segments.documents(segment_ids) * 2 + ~segments.real(segment_ids)      # padding between documents is a run of its own
    mask = (run[:, :, None] == run[:, None, :])[:, None]
  return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, local_window_size=local)


def init_cache(batch: int, slots: int, kv_heads: int, head_dim: int, dtype) -> dict[str, jax.Array]:
  """An empty cache: all zeros.  `held` is 1 + the position that a slot's key has in its document, 0 for an empty slot."""
  return dict(k=jnp.zeros((batch, slots, kv_heads, head_dim), dtype), v=jnp.zeros((batch, slots, kv_heads, head_dim), dtype),
              held=jnp.zeros((batch, slots), jnp.int32), written=jnp.zeros((batch,), jnp.int32))


def attend_cached(q: jax.Array, k: jax.Array, v: jax.Array, cache: dict[str, Any], positions: jax.Array, *,
                  window: int | None = None, segment_ids: jax.Array | None = None) -> tuple[jax.Array, dict[str, Any]]:
  """Causal attention of new tokens over the cache and themselves.

  q, k, v: as for `attend`, `time` >= 1 new tokens.  positions: int32 [batch, time], of the new tokens in their documents.
  cache: from init_cache; with a window, `slots` >= window is a ring, without one it must hold every token that will come
    (beyond that the oldest keys are overwritten: callers check lengths beforehand, the count is not known while tracing).
  Returns (y [batch, time, heads, head_dim], cache after the new tokens).
  """
  _check_heads(q, k)
  batch, time = q.shape[:2]
  slots = cache['k'].shape[1]
  if segment_ids is None:
    is_real, document = jnp.ones((batch, time), bool), jnp.zeros((batch, time), jnp.int32)
  else:
    is_real, document = segments.real(segment_ids), segments.documents(segment_ids)
  order = jnp.cumsum(is_real, axis=1) - 1
  total = order[:, -1:] + 1
  survives = is_real & (order >= total - slots)                              # of more than `slots` new tokens the last ones stay
  slot = jnp.where(survives, (cache['written'][:, None] + order) % slots, slots)            # `slots` is out of range: dropped
  rows = jnp.arange(batch)[:, None]
  write = lambda old, new: old.at[rows, slot].set(new.astype(old.dtype), mode='drop')
  after = dict(k=write(cache['k'], k), v=write(cache['v'], v), held=write(cache['held'], positions + 1))
  owner = write(jnp.zeros((batch, slots), jnp.int32), document)
  if time == 1 or window is None and time <= slots:          # nothing that a query still needs has been overwritten
    keys, values, held, key_document = after['k'], after['v'], after['held'], owner
  else:
    join = lambda old, new: jnp.concatenate([old, new.astype(old.dtype)], axis=1)
    keys, values = join(cache['k'], k), join(cache['v'], v)
    held = join(cache['held'], jnp.where(is_real, positions + 1, 0))
    key_document = join(jnp.zeros((batch, slots), jnp.int32), document)
  distance = positions[:, :, None] + 1 - held[:, None, :]
  mask = (held[:, None, :] > 0) & (distance >= 0) & (document[:, :, None] == key_document[:, None, :])
  if window is not None:
    mask &= distance < window
  y = jax.nn.dot_product_attention(q, keys.astype(q.dtype), values.astype(q.dtype), mask=mask[:, None])
  current = jnp.max(document, axis=1, keepdims=True)
  after['held'] = jnp.where(owner == current, after['held'], 0)              # what an ended document wrote is empty again
  after['written'] = cache['written'] + total[:, 0]
  return y.astype(v.dtype), after


def _check_heads(q: jax.Array, k: jax.Array) -> None:
  if q.shape[2] % k.shape[2]:
    raise ValueError(f'attention: {q.shape[2]} query heads are not a multiple of {k.shape[2]} key/value heads')
