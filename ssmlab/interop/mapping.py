"""Between the authors' tensors and our trees: one list of rules per system, read in both directions.

A rule names their key, our path and the change of layout between the two.  Where their key holds `{layer}` there is one tensor per block
and our path begins inside the block; elsewhere it begins at the root of the tree.  The rules are linear maps that only move numbers, so
gradients go through the same code as parameters.  A new system is a file with a `Format`: a config, a list of rules, and no loops.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ssmlab.core.config import UserError
from ssmlab.models.encoder import Encoder
from ssmlab.models.lm import LM

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Turn:
  """A change of layout.  ours(*their arrays) -> our array or a tuple of them; theirs(*our arrays) undoes it.

  loose: axes of size 1 may be missing or added in their file.
  """
  ours: Callable[..., Any]
  theirs: Callable[..., Any]
  loose: bool = False


def _same(x):
  return x


SAME = Turn(_same, _same)
TRANSPOSED = Turn(np.transpose, np.transpose)                             # torch's Linear: [out, in]
LAST_TWO = Turn(lambda x: np.swapaxes(x, -1, -2), lambda x: np.swapaxes(x, -1, -2))
ROW = Turn(np.ravel, lambda x: x.reshape(1, 1, -1), loose=True)           # RWKV: vectors as [1, 1, width]
DEPTHWISE = Turn(lambda x: x[:, 0].T, lambda x: x.T[:, None])             # Conv1d: [channels, 1, width]


def shaped(*shape: int) -> Turn:
  """Their array has this shape, ours is flat."""
  return Turn(np.ravel, lambda x: x.reshape(shape))


def joined(parts: int, transposed: bool = False) -> Turn:
  """Their tensor holds several of ours side by side along the outputs, e.g. q, k and v.  transposed: as torch's Linear has it, [out, in]."""
  turn = np.transpose if transposed else _same
  return Turn(lambda x: tuple(np.split(turn(x), parts, axis=-1)), lambda *ours: turn(np.concatenate(ours, axis=-1)))


@dataclasses.dataclass(frozen=True)
class Rule:
  """theirs: key, or several keys that make one entry.  ours: path with '/', or several.

  A path of ours that begins with '*/' stands for that path in every block that has it, from the bottom up: one tensor holds all layers.

  mixer: only in blocks with this mixer (None: in all).  absent: layers whose tensors files may lack; ours are zeros then.
  """
  theirs: str | tuple[str, ...]
  ours: str | tuple[str, ...]
  turn: Turn = SAME
  mixer: type | None = None
  absent: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Format:
  """One system's files.

  recognise: (config or None, tensors) -> whether the files are of this system.
  model: (config, tensors) -> LM or Encoder; raises UserError or ValueError for what we cannot compute.  rules: of this model's parameters.
  config: the authors' config of a model, None where files hold tensors only; raises UserError for a model that they have no words for.
  head: key of the head's weight, which may stand in the files although it is tied.
  ignored: regular expressions of keys that hold nothing to load.
  constants: tensors in the files that are no parameters: checked on import, written on export.
  states: (model, tokens read) -> rules between the authors' decoding state and ours.
  renamed: the tensors under the keys of the rules, where files of several ages or classes say the same in other words.
  """
  recognise: Callable[[dict | None, Arrays], bool]
  model: Callable[[dict, Arrays], LM | Encoder]
  rules: Callable[[LM | Encoder], list[Rule]]
  config: Callable[[LM | Encoder], dict] | None = None
  head: str = ''
  ignored: tuple[str, ...] = ()
  constants: Callable[[LM], dict[str, np.ndarray]] = lambda model: {}
  states: Callable[[LM, int], list[Rule]] = lambda model, tokens: []
  renamed: Callable[[Arrays], Arrays] = _same


def views(model: LM | Encoder, tree) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """What is outside the blocks, and every block from the bottom up, as {path: array}.

  tree: parameters, gradients or a state of the model, of numpy arrays; the arrays returned are views: writing to them fills the tree.
  """
  outside = traverse_util.flatten_dict({k: v for k, v in tree.items() if k not in ('lead', 'blocks', 'tail')}, sep='/')
  return outside, [traverse_util.flatten_dict(block, sep='/') for block in model.layers(tree)]


def _keys(names: str | tuple[str, ...]) -> tuple[str, ...]:
  return (names,) if isinstance(names, str) else names


def _tuple(values) -> tuple:
  return values if isinstance(values, tuple) else (values,)


def _entries(rules: list[Rule], model: LM, tree) -> Iterator[tuple[Rule, tuple[str, ...], dict[str, np.ndarray], bool]]:
  """Every rule at every layer: (rule, their keys, our views by full path, whether the file may lack it).

  A rule whose path the tree does not have (an option that is off, another kind of block) says nothing.
  """
  outside, layers = views(model, tree)
  for rule in rules:
    theirs, ours = _keys(rule.theirs), _keys(rule.ours)
    if ours[0].startswith('*/'):
      paths = [path.removeprefix('*/') for path in ours]
      if named := {f'block {index}: {path}': places[path] for path in paths for index, places in enumerate(layers) if path in places}:
        yield rule, theirs, named, False
      continue
    if '{layer}' not in theirs[0]:
      if ours[0] in outside:
        yield rule, theirs, {path: outside[path] for path in ours}, False
      continue
    for index, (block, places) in enumerate(zip(model.blocks, layers)):
      if ours[0] in places and (rule.mixer is None or isinstance(block.mixer, rule.mixer)):
        named = {f'block {index}: {path}': places[path] for path in ours}
        yield rule, tuple(key.replace('{layer}', str(index)) for key in theirs), named, index in rule.absent


def _theirs(rule: Rule, ours) -> tuple[np.ndarray, ...]:
  return _tuple(rule.turn.theirs(*ours))


def fill(rules: list[Rule], model: LM, tree, tensors: Arrays) -> set[str]:
  """Writes their tensors into our tree of numpy arrays; returns the keys that were used.

  Raises UserError naming a tensor that is missing, has another shape, or is not of floating point.
  """
  used = set()
  for rule, keys, ours, may_lack in _entries(rules, model, tree):
    if may_lack and not any(key in tensors for key in keys):
      for view in ours.values():
        view[...] = 0
      continue
    given = []
    for key, wanted in zip(keys, _theirs(rule, ours.values())):
      given.append(_checked(key, tensors, wanted.shape, rule.turn.loose))
    for view, value in zip(ours.values(), _tuple(rule.turn.ours(*given)), strict=True):
      view[...] = value
    used.update(keys)
  return used


def _checked(key: str, tensors: Arrays, shape: tuple[int, ...], loose: bool) -> np.ndarray:
  if key not in tensors:
    raise UserError(f'tensor {key!r} is missing')
  array = tensors[key]
  bare = lambda sizes: tuple(size for size in sizes if size != 1)
  if array.shape != shape and not (loose and bare(array.shape) == bare(shape)):
    raise UserError(f'tensor {key!r} has shape {array.shape}, expected {shape}')
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise UserError(f'tensor {key!r} is of type {array.dtype}; float32, bfloat16 and float16 can be loaded')
  return array.reshape(shape)


def read(rules: list[Rule], model: LM, tree) -> dict[str, np.ndarray]:
  """Our tree as the authors' tensors: parameters, gradients or a state, in the tree's own dtype."""
  tree, tensors = jax.tree.map(np.asarray, tree), {}
  for rule, keys, ours, _ in _entries(rules, model, tree):
    tensors |= {key: np.ascontiguousarray(value) for key, value in zip(keys, _theirs(rule, ours.values()), strict=True)}
  return tensors


def uncovered(rules: list[Rule], model: LM, tree) -> list[str]:
  """Paths of the tree that no rule writes."""
  outside, layers = views(model, tree)
  every = set(outside) | {f'block {i}: {path}' for i, places in enumerate(layers) for path in places}
  return sorted(every - {path for _, _, ours, _ in _entries(rules, model, tree) for path in ours})


def export_state(form: Format, model: LM, state, tokens: int) -> dict[str, np.ndarray]:
  """Our decoding state, after `tokens` tokens in every row, as the authors' tensors."""
  return read(form.states(model, tokens), model, state)


def import_state(form: Format, model: LM, tensors: Arrays, tokens: int, max_length: int):
  """The authors' decoding state after `tokens` tokens in every row, as ours with room for max_length tokens.

  `hidden`, the head's last input, is in no author's state: it is zero until the next token is read.
  Raises UserError for a tensor that is missing or unexpected, and for a state that their files do not hold (attention's cache).
  """
  rules, batch = form.states(model, tokens), next(iter(tensors.values())).shape[0]
  tree = jax.tree.map(np.array, model.init_state(batch, max_length))
  used = fill(rules, model, tree, tensors)
  if unknown := sorted(set(tensors) - used):
    raise UserError(f'unexpected state {unknown[0]!r}')
  for path in uncovered(rules, model, tree):
    if path.endswith('/position'):
      continue
    if path.startswith('block '):
      raise UserError(f'the authors\' state does not hold {path}')
  outside, layers = views(model, tree)
  for places in (outside, *layers):
    for path, view in places.items():
      if path.split('/')[-1] == 'position':
        view[...] = tokens
  return jax.tree.map(jnp.asarray, tree)
