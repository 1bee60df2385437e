"""The linear recurrence as matrix products over chunks of tokens.

Groups of chunks are walked by `lax.scan`.  The gradient is a scan from the right that recomputes one group at a time from the state that
entered it, so that training stores the inputs and one state per group.
"""

import functools
import math

import jax
import jax.numpy as jnp

from ssmlab.core import mesh as meshes
from ssmlab.ops.linear_recurrence.group import Documents, advance
from ssmlab.ops.linear_recurrence.reference import Arrays


def chunked(tokens: Arrays, bonus: jax.Array | None, initial: jax.Array, chunk: int | None,
            group: int | None = None) -> tuple[jax.Array, jax.Array]:
  """o [batch, time, heads, value] in the state's dtype, and the final state.

  tokens: as in `reference.sequential`, in any float dtype.  chunk: tokens per chunk, rounded up to a power of two; None chooses.
  group: chunks computed at once; None chooses.
  """
  time = tokens['q'].shape[1]
  default_chunk, default_group = _sizes(tokens)
  chunk = max(2, _power_of_two(min(chunk or default_chunk, time)))
  group = min(group or default_group, math.ceil(time / chunk))
  cut = functools.partial(_cut, group=group, chunk=chunk)
  documents = None if tokens['starts'] is None else _documents(tokens['starts'], group, chunk)
  parts = {name: None if x is None else cut(x) for name, x in tokens.items() if name != 'starts'}
  o, state = _walk(bonus is not None, parts, documents, initial)
  o = _join(o, time)
  if bonus is not None:
    q, k, v = (tokens[name].astype(o.dtype) for name in 'qkv')
    o = o + jnp.sum(q * bonus * k, axis=-1, keepdims=True) * v
  return o, state


def _sizes(tokens: Arrays) -> tuple[int, int]:
  """(chunk, group).  Larger chunks mean more arithmetic per token and fewer states, larger groups fewer and larger operations.

  Measured forward + backward at batch 4, 4 heads of 64, length 2048, float32, 2 cores CPU, November 2026, with chunks of 16 / 32 / 64 / 128:
  scalar - / 81 / 77 / 104 ms, vector 160 / 155 / 199 / -, with a and b 219 / 231 / 335 / - (busy); groups of 4 chunks gain nothing there.
  The sizes for accelerators are not measured.
  """
  if meshes.platform() != 'cpu':
    return 64, 8
  if tokens['a'] is not None:
    return 16, 1
  return (64 if tokens['log_decay'] is None or tokens['log_decay'].shape[-1] == 1 else 32), 1


def _power_of_two(n: int) -> int:
  return 1 << (n - 1).bit_length()


def _cut(x: jax.Array, group: int, chunk: int) -> jax.Array:
  """[batch, time, heads, ...] -> [groups, batch, heads, group, chunk, ...], zeros after the end, no group axis where group is 1."""
  groups = math.ceil(x.shape[1] / (group * chunk))
  x = jnp.pad(x, ((0, 0), (0, groups * group * chunk - x.shape[1])) + ((0, 0),) * (x.ndim - 2))
  within = (group, chunk) if group > 1 else (chunk,)
  x = x.reshape(x.shape[:1] + (groups,) + within + x.shape[2:])
  return jnp.moveaxis(x, (1, 2 + len(within)), (0, 2))


def _join(o: jax.Array, time: int) -> jax.Array:
  """The inverse of `_cut`, without what was padded."""
  o = jnp.moveaxis(o, (0, 2), (1, -2))
  return o.reshape(o.shape[:1] + (-1,) + o.shape[-2:])[:, :time]


def _documents(starts: jax.Array, group: int, chunk: int) -> Documents:
  """Numbers of documents, of the tokens [groups, batch, 1, group, chunk] and of the states that enter the chunks [.., group]."""
  number = jnp.cumsum(starts, axis=1, dtype=jnp.int32)
  number = jnp.pad(number, ((0, 0), (1, -number.shape[1] % (group * chunk))), mode='edge')
  number = number.at[:, 0].set(0)                       # before the first token: the document of the initial state
  of_token, left = (_cut(x[:, :, None], group, chunk) for x in (number[:, 1:], number[:, :-1]))
  return of_token, left[..., 0]


def _scan(step, carry: jax.Array, xs, reverse: bool = False):
  """lax.scan over groups, from a carry that XLA cannot know to be zero.

  Where there is one group only, XLA CPU (jaxlib 0.10.2) fuses a state or cotangent that is known to be zero into the matrix products (its
  YNN fusions), which then read other memory: NaN or 1e36, another number in every process.
  """
  unknown = jnp.minimum(jnp.abs(xs[0]['v'][0].astype(carry.dtype)), 0)                # 0, but for XLA a function of v
  unknown = unknown.reshape(unknown.shape[:2] + (-1, unknown.shape[-1])).sum(axis=2)[:, :, None]
  return jax.lax.scan(step, carry + unknown, xs, reverse=reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _walk(before: bool, parts: Arrays, documents: Documents, initial: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(o, final state) of all groups.  before: tokens are read before they are written."""
  def step(state, xs):
    o, state = advance(before, *xs, state)
    return state, o
  state, o = _scan(step, initial, (parts, documents))
  return o, state


def _walk_forward(before, parts, documents, initial):
  def step(state, xs):
    o, after = advance(before, *xs, state)
    return after, (o, state)
  state, (o, entering) = _scan(step, initial, (parts, documents))
  return (o, state), (parts, documents, entering)


def _walk_backward(before, residuals, cotangents):
  parts, documents, entering = residuals
  d_o, d_state = cotangents

  def step(d_state, xs):
    part, document, state, d_o = xs
    _, pull = jax.vjp(lambda part, state: advance(before, part, document, state), part, state)
    d_part, d_state = pull((d_o, d_state))
    return d_state, d_part

  d_initial, d_parts = _scan(step, d_state, (parts, documents, entering, d_o), reverse=True)
  return d_parts, None, d_initial


_walk.defvjp(_walk_forward, _walk_backward)
