"""Parameter trees: an array is declared once, by shape, axis names, initialiser and optimiser hints.

A declaration tree is a nested dict whose leaves are `Param`; a parameter tree is the same nested dict with arrays at the leaves.
Nothing else is a "module": `init` makes arrays, `stack` adds the scanned layer axis, `specs` (core.mesh) shards, the optimiser reads hints.
"""

import dataclasses
import math
import zlib
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from ssmlab.core import inits


class Layer(NamedTuple):
  """Which copy of a block an array belongs to: some authors' initial values depend on depth.

  index: 0-based, may be traced (layers are initialised under vmap); count: number of layers in the network.
  """
  index: Any = 0
  count: int = 1


@dataclasses.dataclass(frozen=True)
class Param:
  """Declaration of one array.

  shape: sizes.  axes: one name (with a rule in core.mesh) or None per axis.
  init: function (key, shape, layer) -> float32 array.
  weight_decay: whether the optimiser decays it.  rate: factor on the learning rate; 0 for a constant that files hold.
  full_precision: stays float32 where activations are bfloat16 (decays, time constants, anything that is exponentiated).
  """
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  init: Callable[[jax.Array, tuple[int, ...], Layer], jax.Array] = inits.fan_in()
  weight_decay: bool = True
  rate: float = 1.0
  full_precision: bool = False

  def __post_init__(self):
    if len(self.shape) != len(self.axes):
      raise ValueError(f'Param: {len(self.shape)} sizes {self.shape} but {len(self.axes)} axis names {self.axes}')

  @property
  def size(self) -> int:
    return math.prod(self.shape)


def vector(size: int, axis: str | None, init=inits.constant(0.0), **hints) -> Param:
  """A per-channel vector (bias, scale, mixing coefficient): never decayed."""
  return Param((size,), (axis,), init, weight_decay=False, **hints)


def _leaf(x) -> bool:
  return isinstance(x, Param)


def init(key: jax.Array, tree) -> Any:
  """Draws every array of a declaration tree in float32.

  The key of an array is derived from its path, so that one more array leaves all the others as they were.
  """
  def draw(path, param):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    array = param.init(jax.random.fold_in(key, zlib.crc32(name.encode())), param.shape, Layer())
    if array.shape != param.shape:
      raise ValueError(f'initialiser of {name} returned shape {array.shape}, declared {param.shape}')
    return array.astype(jnp.float32)
  return jax.tree_util.tree_map_with_path(draw, tree, is_leaf=_leaf)


def at_layer(tree, index: int, count: int) -> Any:
  """The same declarations, initialised as layer `index` of `count`."""
  def place(param):
    return dataclasses.replace(param, init=lambda key, shape, _: param.init(key, shape, Layer(index, count)))
  return jax.tree.map(place, tree, is_leaf=_leaf)


def stack(tree, copies: int, first: int = 0, stride: int = 1, count: int | None = None) -> Any:
  """Adds a leading scanned axis named 'layer': each copy is drawn on its own, as layer first + i * stride of `count`."""
  total = copies if count is None else count

  def widen(param):
    def draw(key, shape, _):
      indices = jnp.arange(copies)
      keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
      one = lambda k, i: param.init(k, shape[1:], Layer(first + stride * i, total))
      return jax.vmap(one)(keys, indices)
    return dataclasses.replace(param, shape=(copies, *param.shape), axes=('layer', *param.axes), init=draw)
  return jax.tree.map(widen, tree, is_leaf=_leaf)


def shapes(tree, dtype=jnp.float32) -> Any:
  """The tree as jax.ShapeDtypeStruct: for shape evaluation, restoring and ahead-of-time compilation."""
  return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), tree, is_leaf=_leaf)


def size(tree) -> int:
  """Number of scalars that are learned: constants that are kept beside them (rate 0) do not count."""
  return sum(p.size for p in jax.tree.leaves(tree, is_leaf=_leaf) if p.rate)


def hints(tree, name: str) -> Any:
  """One field of every Param as a tree, e.g. hints(tree, 'weight_decay')."""
  return jax.tree.map(lambda p: getattr(p, name), tree, is_leaf=_leaf)
