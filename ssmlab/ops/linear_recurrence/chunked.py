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
    x = jnp.moveaxis(x, (1, 4), (0, 2))
    return x.squeeze(3) if group == 1 else x

  documents = None
  if tokens['starts'] is not None:
    count = jnp.cumsum(tokens['starts'], axis=1, dtype=jnp.int32)
    count = jnp.pad(count, ((0, 0), (0, padding)), mode='edge')
    before = jnp.pad(count, ((0, 0), (1, 0)))[:, :-1].reshape(-1, groups, group, size)[..., 0]
    count = count.reshape(-1, groups, group, size)
    documents = jnp.moveaxis(count, 1, 0)[:, :, None], jnp.moveaxis(before, 1, 0)[:, :, None]
    if group == 1:
      documents = tuple(x.squeeze(3) for x in documents)
  parts = {name: None if x is None else cut(x) for name, x in tokens.items() if name != 'starts'}
  o, state = _walk(bonus is not None, parts, documents, initial)
  if group == 1:
    o = o[:, :, :, None]
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
  chunk] and of the state that enters each chunk [batch, 1, group].  The group axis is left out where a group is one chunk.
  """
  precision = jax.lax.Precision.DEFAULT if part['v'].dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
  product = functools.partial(jnp.matmul, precision=precision)
  turn = lambda x: jnp.swapaxes(x, -1, -2)
  q, k, v, a, b, log_decay = (part[n] if part[n] is None else part[n].astype(state.dtype) for n in ('q', 'k', 'v', 'a', 'b', 'log_decay'))
  chunk = q.shape[-2]
  rank_one = a is not None
  if log_decay is None:
    log_decay = jnp.zeros(q.shape[:-1] + (1,), q.dtype)
  # Reading S_t is reading S_{t-1} with exp(g_t) q_t, and the token itself; so inside every read is of S_{t-1}.
  early = q if before else q * jnp.exp(log_decay)
  reads = jnp.concatenate([early, a], axis=-2) if rank_one else early
  writes = jnp.concatenate([k, b], axis=-2) if rank_one else k
  kinds = 2 if rank_one else 1
  scores = inside.scores(precision, reads, writes, log_decay)
  from_start, to_end, total = (jnp.exp(x) for x in inside.sums(log_decay))
  if documents is not None:
    of_token, of_state = documents
    same = of_token[..., :, None] == of_token[..., None, :]
    scores = jnp.where(jnp.tile(same, (kinds, kinds)), scores, 0)
    from_start = jnp.where((of_token == of_state[..., None])[..., None], from_start, 0)
    to_end = jnp.where((of_token == of_token[..., -1:])[..., None], to_end, 0)
    total = jnp.where((of_token[..., -1] == of_state)[..., None, None], total, 0)
  reads, writes = inside.scale(reads, from_start), turn(inside.scale(writes, to_end))
  by_value = product(scores[..., :chunk], v)
  total = turn(total)

  def through(state, xs):
    by_value, v, reads, writes, total, lower = xs
    seen = by_value + product(reads, state)
    if rank_one:
      u = inside.solve_unit_lower(lower, seen[..., chunk:, :])
      v = jnp.concatenate([v, u], axis=-2)
    return total * state + product(writes, v), (seen[..., :chunk, :], u if rank_one else None)

  xs = (by_value, v, reads, writes, total, scores[..., chunk:, chunk:] if rank_one else None)
  if q.ndim == 4:
    state, (o, u) = through(state, xs)
  else:
    xs = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), xs)
    state, seen = jax.lax.scan(through, state, xs)
    o, u = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), seen)
  if not before:
    o = o + jnp.sum(q * k, axis=-1, keepdims=True) * v
  if rank_one:
    o = o + product(scores[..., :chunk, chunk:], u)
    if not before:
      o = o + jnp.sum(q * b, axis=-1, keepdims=True) * u
  return o, state
