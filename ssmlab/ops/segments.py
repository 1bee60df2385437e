"""Where documents begin inside a packed batch.  One reading of `segment_ids`, used by every operator.

`segment_ids` int32 [batch, time].  Id 0 is padding: it neither reads nor writes.  Inside one call a new document starts at every real
token whose left neighbour has another id, except at the call's first real token: that one continues whatever state the call was given
(the model replaces the state beforehand where the document is another one; see `models.lm`).
"""

from typing import Any

import jax
import jax.numpy as jnp


def real(segment_ids: jax.Array) -> jax.Array:
  """True where there is a token and not padding.  bool [batch, time]."""
  return segment_ids != 0


def starts(segment_ids: jax.Array) -> jax.Array:
  """True at the first token of every document but the call's first.  bool [batch, time]."""
  left = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)))
  begins = real(segment_ids) & (segment_ids != left)
  return begins & (jnp.cumsum(begins, axis=1) > 1)


def documents(segment_ids: jax.Array) -> jax.Array:
  """How many documents began since the call's start: 0 for the one that continues the state.  int32 [batch, time]."""
  return jnp.cumsum(starts(segment_ids), axis=1, dtype=jnp.int32)


def positions(segment_ids: jax.Array | None, time: int, carried: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Position of every token inside its document, and the position that the next call begins at.

  segment_ids: [batch, time] or None (one document, no padding).
  carried: int32 [batch], tokens of the current document read by earlier calls.
  Returns int32 [batch, time] and int32 [batch].  Padding has the position that the next token will have.
  """
  if segment_ids is None:
    return carried[:, None] + jnp.arange(time, dtype=jnp.int32), carried + time
  is_real = real(segment_ids)
  before = jnp.cumsum(is_real, axis=1, dtype=jnp.int32) - is_real        # real tokens left of this one
  base = jax.lax.cummax(jnp.where(starts(segment_ids), before, -carried[:, None]), axis=1)
  where = before - base
  return where, where[:, -1] + is_real[:, -1]


def last_real(segment_ids: jax.Array) -> jax.Array:
  """Index of the last real token, -1 where the row has none.  int32 [batch]."""
  time = segment_ids.shape[1]
  return jnp.max(jnp.where(real(segment_ids), jnp.arange(time, dtype=jnp.int32), -1), axis=1)


def fresh(state: Any, rows: jax.Array) -> Any:
  """A state with the marked rows as if nothing had been read, which for every mixer is zero.  rows: bool [batch]."""
  return jax.tree.map(lambda leaf: jnp.where(rows.reshape(-1, *(1,) * (leaf.ndim - 1)), jnp.zeros_like(leaf), leaf), state)
