"""Operators whose time the mesh splits: each device works on its own part, and what enters the part comes from the parts before it.

A recurrence hands on a summary of a whole part, such as (P, R) of S -> P S + R.  Summaries are composed over the devices in log2 of their number
exchanges (Hillis & Steele, Data parallel algorithms, 1986), which JAX differentiates into the same exchanges the other way.  Only the axis
`sequence` is manual here: batch and channels stay with the compiler.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ssmlab.core import mesh as meshes

_AXIS = meshes.RULES['time']


def parts(time: int) -> int:
  """How many parts the mesh that is set cuts `time` tokens into; 1 where it does not, and on a part itself."""
  count = meshes.free_axes().get(_AXIS, 1)
  return count if time % count == 0 and time > count else 1


def on_parts(part: Callable[[Any, Any], tuple[Any, Any]], tokens: Any, shared: Any, reverse: bool = False) -> tuple[Any, Any]:
  """part(tokens, shared) -> (outputs, last) on every device's own time; the outputs, and the `last` of the last part (reverse: the first).

  tokens: a tree of [batch, time, ...]; a time of 1 stands for every token and stays whole.  shared: a tree that every part gets whole.
  outputs: a tree of [batch, time, ...].  last: a tree without time.
  """
  time = max(x.shape[1] for x in jax.tree.leaves(tokens))
  own, whole = PartitionSpec(None, _AXIS), PartitionSpec()
  specs = jax.tree.map(lambda x: own if x.shape[1] == time else whole, tokens), jax.tree.map(lambda x: whole, shared)

  def run(tokens, shared):
    outputs, last = part(tokens, shared)
    return outputs, jax.tree.map(lambda x: x[None], last)
  outputs, last = jax.shard_map(run, in_specs=specs, out_specs=(own, PartitionSpec(_AXIS)), axis_names={_AXIS}, check_vma=False)(tokens, shared)
  return outputs, jax.tree.map(lambda x: x[0 if reverse else -1], last)


def entering(compose: Callable[[Any, Any], Any], summary: Any, initial: Any, reverse: bool = False) -> Any:
  """Within `on_parts`: the summary of everything before this part, `initial` included.

  compose(earlier, later): associative, on summaries of equal shapes.  initial: the summary that stands before the first part.
  """
  count, here = jax.lax.axis_size(_AXIS), jax.lax.axis_index(_AXIS)
  here = count - 1 - here if reverse else here

  def received(tree, by: int):
    pairs = [(i + by, i) if reverse else (i, i + by) for i in range(count - by)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, _AXIS, pairs), tree)
  choose = lambda condition, one, other: jax.tree.map(lambda x, y: jnp.where(condition, x, y), one, other)
  summary, step = choose(here == 0, compose(initial, summary), summary), 1
  while step < count:
    summary = choose(here >= step, compose(received(summary, step), summary), summary)
    step *= 2
  return choose(here == 0, initial, received(summary, 1))


def halo(x: jax.Array, reach: int, after: bool = False) -> jax.Array:
  """Within `on_parts`: the `reach` tokens before (or after) this part, zeros where there is no part.  x: [batch, time of the part, ...]."""
  count, time = jax.lax.axis_size(_AXIS), x.shape[1]
  found = []
  for by in range(1, min(-(-reach // time), count - 1) + 1):
    taken = min(reach - (by - 1) * time, time)
    pairs = [(i + by, i) if after else (i, i + by) for i in range(count - by)]
    found.append(jax.lax.ppermute(x[:, :taken] if after else x[:, time - taken:], _AXIS, pairs))
  found.append(jnp.zeros((x.shape[0], reach - sum(y.shape[1] for y in found), *x.shape[2:]), x.dtype))
  return jnp.concatenate(found if after else found[::-1], axis=1)


def whole(x: jax.Array) -> jax.Array:
  """Within `on_parts`: all parts.  [batch, time of the part, ...] -> [batch, time, ...]."""
  return jax.lax.all_gather(x, _AXIS, axis=1, tiled=True)


def offset(time: int) -> jax.Array:
  """Within `on_parts`: tokens before this part of `time` tokens."""
  return jax.lax.axis_index(_AXIS) * time


def total(x: jax.Array) -> jax.Array:
  """Within `on_parts`: the sum over the parts."""
  return jax.lax.psum(x, _AXIS)
