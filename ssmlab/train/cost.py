"""What an experiment costs, before it is run: parameters, FLOPs, memory, by arithmetic."""

import jax
import numpy as np

from ssmlab.core import mesh as meshes
from ssmlab.core.config import dump
from ssmlab.core.params import size
from ssmlab.models.calm import CALM, cost
from ssmlab.tasks.next_token import LOGITS_AT_ONCE


def describe(experiment) -> str:
  """The resolved config and a table of its costs."""
  rows = costs(experiment)
  width = max(len(name) for name, _ in rows)
  return dump(experiment) + '\n' + '\n'.join(f'{name:<{width}}  {value}' for name, value in rows)


def costs(experiment) -> list[tuple[str, str]]:
  """(name, value) of: parameters, tokens, FLOPs, state, memory per device."""
  model, data, train = experiment.model, experiment.data, experiment.train
  declared = model.params()
  count, tokens = size(declared), train.steps * data.batch_size * data.length
  ends = size(declared['embedding']) + size(declared.get('head', {}))
  forward = experiment.flops()
  sizes = dict(zip(meshes.AXES, experiment.mesh.sizes(jax.device_count())))
  activations, held = activation_bytes(experiment, sizes), 16 * on_one_device(declared, sizes)
  state = [model.state_bytes(length) for length in (data.length, 16 * data.length)]
  carried = f'{state[0]:,} bytes after {data.length} tokens, {state[1]:,} after {16 * data.length}' if state[0] is not None else 'none: it reads both ways'
  both = cost.report(model, data.length, tokens) if isinstance(model, CALM) else []
  return [
      ('parameters', f'{count:,} ({count - ends:,} without embedding and head)'),
      ('tokens', f'{tokens:,} ({data.batch_size} x {data.length} a step, {train.steps:,} steps)'),
      ('FLOPs per token', f'{forward:.3e} forward, {3 * forward:.3e} training'),
      ('FLOPs of the run', f'{3 * forward * tokens:.3e}'),
      *((f'CALM: {what}', f'{flops:.3e} FLOPs') for what, flops in both),
      ('state per sequence', carried),
      ('memory per device', f'{_size(held)} parameters, gradient and Adam (16 bytes each, float32), about {_size(activations)} activations'),
      ('mesh', ' x '.join(f'{name} {n}' for name, n in sizes.items())),
  ]


def on_one_device(declared, sizes: dict[str, int]) -> int:
  """Entries of a declaration tree that one device of a mesh holds."""
  return sum(int(np.prod(_shard(p, sizes))) for p in jax.tree.leaves(declared, is_leaf=lambda x: hasattr(x, 'axes')))


def _shard(param, sizes) -> list[int]:
  parts = meshes.spec(param.shape, param.axes, sizes)
  whole = lambda axis: int(np.prod([sizes[a] for a in ((axis,) if isinstance(axis, str) else axis or ())]))
  return [n // whole(axis) for n, axis in zip(param.shape, (*parts, *(None,) * len(param.shape)))]


def activation_bytes(experiment, sizes) -> int:
  """What the backward pass keeps on the device: the residual stream at every block with remat='block', else about a block's inner widths of it too;
  with 'offload' one block's."""
  model, data = experiment.model, experiment.data
  tokens = data.batch_size * data.length // (sizes['data'] * sizes['fsdp'] * sizes['sequence'] * experiment.train.accumulate)
  itemsize = 2 if model.activations == 'bfloat16' else 4
  if not model.blocks:                                       # a network without mixers says it itself
    return tokens * itemsize * model.activation_width()
  block = max(sum(p.size // model.width for p in jax.tree.leaves(model._block_params(b), is_leaf=lambda x: hasattr(x, 'axes')) if len(p.shape) > 1)
              for b in model.blocks)
  kept = block + {'block': model.depth * model.width, 'offload': model.width}.get(model.remat, model.depth * (model.width + block) - block)
  return tokens * itemsize * kept + 4 * min(tokens * model.vocab, LOGITS_AT_ONCE)


def _size(count: float) -> str:
  for unit in ('B', 'KiB', 'MiB', 'GiB'):
    if count < 1024:
      return f'{count:.3g} {unit}'
    count /= 1024
  return f'{count:.3g} TiB'
