"""The linear recurrence as matrix products over chunks of tokens.

Chunks are walked in groups by `lax.scan`.  The gradient is a scan from the right that recomputes one group at a time from its boundary
state, so that training stores the inputs and one state per group.
"""

import functools

import jax
import jax.numpy as jnp

from ssmlab.ops.linear_recurrence import chunk as inside
from ssmlab.ops.linear_recurrence.reference import Arrays

_CHUNK = 64
_GROUP = 1


def chunked(tokens: Arrays, bonus: jax.Array | None, initial: jax.Array, chunk: int | None, group: int | None = None) -> tuple[jax.Array, jax.Array]:
  """o [batch, time, heads, value] and the final state.

  tokens: as in `reference.sequential`, in any float dtype.  chunk: tokens per chunk, or None.  group: chunks computed at once, or None.
  """
  time = tokens['q'].shape[1]
  size = _power_of_two(min(chunk or _CHUNK, time))
  group = min(group or _GROUP, -(-time // size))
  groups = -(-time // (size * group))
  padding = groups * group * size - time

  def cut(x):                                           # [batch, time, heads, ...] -> [groups, batch, heads, group, chunk, ...]
    x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
    x = x.reshape(x.shape[:1] + (groups, group, size) + x.shape[2:])
    return jnp.moveaxis(x, (1, 4), (0, 2))

  documents = None
  if tokens['starts'] is not None:
    count = jnp.cumsum(tokens['starts'], axis=1, dtype=jnp.int32)
    count = jnp.pad(count, ((0, 0), (0, padding)), mode='edge')
    before = jnp.pad(count, ((0, 0), (1, 0)))[:, :-1].reshape(-1, groups, group, size)[..., 0]
    count = count.reshape(-1, groups, group, size)
    documents = jnp.moveaxis(count, 1, 0)[:, :, None], jnp.moveaxis(before, 1, 0)[:, :, None]
  parts = {name: None if x is None else cut(x) for name, x in tokens.items() if name != 'starts'}
  o, state = _walk(bonus is not None, parts, documents, initial)
  o = jnp.moveaxis(o, (0, 2), (1, 4)).reshape(o.shape[1:2] + (groups * group * size,) + o.shape[2:3] + o.shape[-1:])[:, :time]
  if bonus is not None:
    q, k, v = (tokens[name].astype(o.dtype) for name in 'qkv')
    o = o + jnp.sum(q * bonus * k, axis=-1, keepdims=True) * v
  return o, state


def _power_of_two(n: int) -> int:
  return 1 << (n - 1).bit_length()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _walk(before: bool, parts: Arrays, documents, initial: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(o, final state) of all groups.  before: tokens are read before they are written."""
  def advance(state, xs):
    o, state = _group(before, *xs, state)
    return state, o
  state, o = jax.lax.scan(advance, initial, (parts, documents))
  return o, state


def _walk_forward(before, parts, documents, initial):
  def advance(state, xs):
    o, after = _group(before, *xs, state)
    return after, (o, state)
  state, (o, entering) = jax.lax.scan(advance, initial, (parts, documents))
  return (o, state), (parts, documents, entering)


def _walk_backward(before, residuals, cotangents):
  parts, documents, entering = residuals
  d_o, d_state = cotangents

  def retreat(d_state, xs):
    part, document, state, d_o = xs
    _, pull = jax.vjp(lambda part, state: _group(before, part, document, state), part, state)
    d_part, d_state = pull((d_o, d_state))
    return d_state, d_part

  d_initial, d_parts = jax.lax.scan(retreat, d_state, (parts, documents, entering, d_o), reverse=True)
  return d_parts, None, d_initial


_walk.defvjp(_walk_forward, _walk_backward)


def _group(before: bool, part: Arrays, documents, state: jax.Array) -> tuple[jax.Array, jax.Array]:
  """One group of chunks: o [batch, heads, group, chunk, value] and the state after it.

  part: q, k, a, b [batch, heads, group, chunk, key], v [.., value], log_decay [.., key or 1].  documents: of the tokens [batch, 1, group,
  chunk] and of the state that enters each chunk [batch, 1, group].
  """
  precision = jax.lax.Precision.DEFAULT if part['v'].dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
  product = functools.partial(jnp.einsum, precision=precision)
  q, k, v, a, b, log_decay = (part[n] if part[n] is None else part[n].astype(state.dtype) for n in ('q', 'k', 'v', 'a', 'b', 'log_decay'))
  rank_one = a is not None
  # Reading S_t is reading S_{t-1} with exp(g_t) q_t, and the token itself; so inside every read is of S_{t-1}.
  early = q if before or log_decay is None else q * jnp.exp(log_decay)
  reads = jnp.stack([early, a] if rank_one else [early], axis=-3)
  writes = jnp.stack([k, b] if rank_one else [k], axis=-3)
  scores, from_start, to_end, total = _scores(product, reads, writes, log_decay)
  if documents is not None:
    of_token, of_state = documents
    same = of_token[..., :, None] == of_token[..., None, :]
    scores = jnp.where(same[..., None, :, None, :], scores, 0)
    from_start = jnp.where((of_token == of_state[..., None])[..., None], from_start, 0)
    to_end = jnp.where((of_token == of_token[..., -1:])[..., None], to_end, 0)
    total = jnp.where((of_token[..., -1] == of_state)[..., None, None], total, 0)
  reads, writes = (x * y[..., None, :, :] for x, y in ((reads, from_start), (writes, to_end)))
  by_value = product('...rij,...jv->...riv', scores[..., 0, :], v)
  added = product('...jk,...jv->...kv', writes[..., 0, :, :], v)
  total = jnp.swapaxes(total, -1, -2)

  def through(state, xs):
    added, total, extra = xs
    corrections = None
    after = total * state + added
    if rank_one:
      lower, read, right, write = extra
      corrections = inside.solve_unit_lower(lower, right + product('...ik,...kv->...iv', read, state))
      after = after + product('...ik,...iv->...kv', write, corrections)
    return after, (state, corrections)

  extra = (scores[..., 1, :, 1, :], reads[..., 1, :, :], by_value[..., 1, :, :], writes[..., 1, :, :]) if rank_one else None
  xs = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), (added, total, extra))
  state, (entering, corrections) = jax.lax.scan(through, state, xs)
  entering, corrections = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), (entering, corrections))
  o = by_value[..., 0, :, :] + product('...ik,...kv->...iv', reads[..., 0, :, :], entering)
  if not before:
    o = o + jnp.sum(q * k, axis=-1, keepdims=True) * v
  if rank_one:
    o = o + product('...ij,...jv->...iv', scores[..., 0, :, 1, :], corrections)
    if not before:
      o = o + jnp.sum(q * b, axis=-1, keepdims=True) * corrections
  return o, state


def _scores(product, reads: jax.Array, writes: jax.Array, log_decay: jax.Array | None):
  """Strictly lower scores [..., reads, chunk, writes, chunk] and the decays from the chunk's start, to its end, and over it.

  reads, writes: [..., reads or writes, chunk, key].  log_decay: [..., chunk, key or 1] or None.
  """
  chunk = reads.shape[-2]
  shape = reads.shape[:-3]
  if log_decay is None:
    one = jnp.ones((1,) * len(shape) + (chunk, 1), reads.dtype)
    plain = product('...rik,...wjk->...riwj', reads, writes)
    return jnp.where(jnp.tri(chunk, k=-1, dtype=bool)[:, None, :], plain, 0), one, one, jnp.broadcast_to(one[..., :1, :], shape + (1, 1))
  if log_decay.shape[-1] == 1:
    cross = lambda since, until, size: jnp.exp(since + jnp.swapaxes(until, -1, -2))[..., None, :, None, :]
    decay, *sums = inside.halves(log_decay, cross, jnp.zeros(shape + (chunk, 1, 1, 1, 1), reads.dtype))
    scores = product('...rik,...wjk->...riwj', reads, writes) * decay
  else:
    by_token = jnp.moveaxis(reads, -3, -2), jnp.moveaxis(writes, -3, -2)

    def cross(since, until, size):
      right, left = (x.reshape(shape + (chunk // (2 * size), 2, size) + x.shape[-2:])[..., half, :, :, :] for half, x in ((1, by_token[0]), (0, by_token[1])))
      right, left = right * jnp.exp(since)[..., None, :], left * jnp.exp(until)[..., None, :]
      return product('...irk,...jwk->...riwj', right, left)

    scores, *sums = inside.halves(log_decay, cross, jnp.zeros(shape + (chunk, reads.shape[-3], 1, writes.shape[-3], 1), reads.dtype))
  return scores, *(jnp.exp(x) for x in sums)
