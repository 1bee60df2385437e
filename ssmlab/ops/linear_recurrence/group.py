"""One group of chunks: everything that does not involve the state for all of them at once, then the state from chunk to chunk.

With c_i the sum of log decays up to token i, R the reads (q, a), W the writes (k, b), and A = (R exp c_{i-1}) (W exp -c_j)^T, j < i:
    U = (I - A_ab)^{-1} (A_ak V + (a exp c_{i-1}) S)        the corrections a_i^T S_{i-1}
    O = A_qk V + A_qb U + (q exp c_{i-1}) S
    S' = exp(c_C) S + (k exp(c_C - c_j))^T V + (b exp(c_C - c_j))^T U

With one decay per head and no a, b the decays are factors of the scores, of O and of V: heads that share q and k share their products.
"""

import functools

import jax
import jax.numpy as jnp

from ssmlab.ops.linear_recurrence import scores
from ssmlab.ops.linear_recurrence.reference import Arrays
from ssmlab.ops.linear_recurrence.triangular import solve_unit_lower

Documents = tuple[jax.Array, jax.Array] | None


def advance(before: bool, part: Arrays, documents: Documents, state: jax.Array) -> tuple[jax.Array, jax.Array]:
  """o [batch, heads, group, chunk, value] and the state after the group.

  before: tokens are read before they are written (and the token itself is left to the caller).
  part: q, k, a, b [batch, heads, group, chunk, key], v [.., value], log_decay [.., key or 1]; a, b, log_decay may be None.  q and k may
    have fewer heads than v where log_decay has one number per head and a, b are None.
  documents: number of the document of every token [batch, 1, group, chunk] and of the state that enters a chunk [batch, 1, group].
  Where a group is one chunk there is no group axis: XLA CPU makes very slow loops of an axis of one.
  """
  # bfloat16 values in single-pass products lose nothing that they had; the state is added up in float32 all the same.
  precision = jax.lax.Precision.DEFAULT if part['v'].dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
  product = functools.partial(jnp.matmul, precision=precision)
  part = {name: x if x is None else x.astype(state.dtype) for name, x in part.items()}
  if part['log_decay'] is None:
    part['log_decay'] = jnp.zeros(part['v'].shape[:-1] + (1,), state.dtype)
  if part['a'] is None and part['log_decay'].shape[-1] == 1:
    return _advance_by_head(product, before, part, documents, state)
  q, k, v, a, b = (part[name] for name in 'qkvab')
  chunk, rank_one = q.shape[-2], a is not None
  pair, reads, writes, total = _weights(precision, before, part, documents)
  by_value = product(pair[..., :chunk], v)

  def through(state, xs):
    by_value, v, reads, writes, total, lower = xs
    seen = by_value + product(reads, state)
    if rank_one:
      u = solve_unit_lower(lower, seen[..., chunk:, :])
      v = jnp.concatenate([v, u], axis=-2)
    return total * state + product(jnp.swapaxes(writes, -1, -2), v), (seen[..., :chunk, :], u if rank_one else None)

  xs = (by_value, v, reads, writes, jnp.swapaxes(total, -1, -2), pair[..., chunk:, chunk:] if rank_one else None)
  if q.ndim == 4:
    state, (o, u) = through(state, xs)
  else:
    state, seen = jax.lax.scan(through, state, jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), xs))
    o, u = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), seen)
  if rank_one:
    o = o + product(pair[..., :chunk, chunk:], u)
  if not before:
    o = o + _dot(q, k) * v + (_dot(q, b) * u if rank_one else 0)
  return o, state


def _advance_by_head(product, before: bool, part: Arrays, documents: Documents, state: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`advance` with one decay per head and no rank-one term."""
  q, k, v, log_decay = (part[name] for name in ('q', 'k', 'v', 'log_decay'))
  shared, heads = q.shape[1], v.shape[1]
  apart = lambda x: x.reshape(x.shape[0], shared, heads // shared, *x.shape[2:])                    # [batch, shared, heads of it, ...]
  side = lambda x: jnp.moveaxis(apart(x), 2, -2)                                                    # [batch, shared, .., heads of it, value]
  flat = lambda x: x.reshape(*x.shape[:-2], -1)
  back = lambda x: jnp.moveaxis(x.reshape(*x.shape[:-1], heads // shared, -1), -2, 2).reshape(x.shape[0], heads, *x.shape[2:-1], -1)
  decays, from_start, to_end, total = _by_head_weights(before, log_decay, documents)
  pair = apart(decays) * product(q, jnp.swapaxes(k, -1, -2))[:, :, None]
  o = product(pair.reshape(decays.shape), v)
  writes = product(jnp.swapaxes(k, -1, -2), flat(side(to_end * v)))
  state, total = flat(side(state)), flat(jnp.broadcast_to(side(total), side(total).shape[:-1] + v.shape[-1:]))

  def through(state, xs):
    total, write = xs
    return total * state + write, state
  if q.ndim == 4:
    after, entering = through(state, (total, writes))
  else:
    after, entering = jax.lax.scan(through, state, jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), (total, writes)))
    entering = jnp.moveaxis(entering, 0, 2)
  return o + from_start * back(product(q, entering)), back(after)


def _by_head_weights(before: bool, log_decay: jax.Array, documents: Documents):
  """Decay between tokens [.., chunk, chunk], from the chunk's start and to its end [.., chunk, 1], and over it [.., 1, 1]."""
  decays = scores.between(log_decay, before)
  from_start, to_end, total = (jnp.exp(x) for x in scores.sums(log_decay))
  if not before:
    from_start = from_start * jnp.exp(log_decay)
  return (decays, from_start, to_end, total) if documents is None else _within(documents, 1, decays, from_start, to_end, total)


def _within(documents: tuple[jax.Array, jax.Array], kinds: int, pair, from_start, to_end, total):
  """The weights without what would cross from one document to another.  kinds: how many times pair holds the chunk on either axis."""
  of_token, of_state = documents
  same = of_token[..., :, None] == of_token[..., None, :]
  return (jnp.where(jnp.tile(same, (kinds, kinds)), pair, 0),
          jnp.where((of_token == of_state[..., None])[..., None], from_start, 0),
          jnp.where((of_token == of_token[..., -1:])[..., None], to_end, 0),
          jnp.where((of_token[..., -1] == of_state)[..., None, None], total, 0))


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.sum(x * y, axis=-1, keepdims=True)


def _weights(precision, before: bool, part: Arrays, documents: Documents):
  """Scores [.., (q, a) chunk, (k, b) chunk], reads of the state and writes to it [.., chunk each, key], decay of the state [.., 1, key or 1]."""
  q, k, a, b, log_decay = (part[name] for name in ('q', 'k', 'a', 'b', 'log_decay'))
  # Reading S_t is reading S_{t-1} with exp(g_t) q_t, and the token itself; so inside every read is of S_{t-1}.
  early = q if before else q * jnp.exp(log_decay)
  reads = early if a is None else jnp.concatenate([early, a], axis=-2)
  writes = k if b is None else jnp.concatenate([k, b], axis=-2)
  pair = scores.scores(precision, reads, writes, log_decay)
  from_start, to_end, total = (jnp.exp(x) for x in scores.sums(log_decay))
  if documents is not None:
    pair, from_start, to_end, total = _within(documents, 1 if a is None else 2, pair, from_start, to_end, total)
  return pair, scores.scale(reads, from_start), scores.scale(writes, to_end), total
