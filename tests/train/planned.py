"""Run by test_plan.py in a process of its own: a small step compiled for eight virtual devices on several meshes, as JSON, a line for each.

Mesh name -> what the plan says, the bytes of the compiled program's arguments, and what the arithmetic of the declared shapes says of them.
"""

import json
import math
import sys

import jax

from ssmlab.core import mesh as meshes
from ssmlab.data import Data
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.rglru import RGLRU
from ssmlab.models import LM
from ssmlab.tasks import NextToken
from ssmlab.train import Experiment, loop
from ssmlab.train.plan import chips, report

MESHES = {'data': dict(data=8), 'fsdp': dict(fsdp=8), 'tensor': dict(tensor=8), 'all': dict(data=2, fsdp=2, tensor=2)}


def experiment(**mesh) -> Experiment:
  return Experiment(model=LM(vocab=64, width=32, pattern=(RGLRU(inner=32, heads=8),), depth=3, channel=GatedMLP(64)),
                    data=Data(length=64, batch_size=8), task=NextToken(piece=16), mesh=meshes.MeshConfig(**mesh))


def arithmetic(declared, sizes: dict[str, int]) -> int:
  """Bytes of one device's part of every array, by hand: a size is divided by the shards of its axis' rule if they divide it."""
  total = 0
  for p in jax.tree.leaves(declared, is_leaf=lambda x: hasattr(x, 'axes')):
    parts, taken = 1, set()
    for n, axis in zip(p.shape, p.axes):
      rule = {'width': 'fsdp', 'inner': 'tensor', 'hidden': 'tensor', 'heads': 'tensor', 'vocab': 'tensor'}.get(axis)
      if rule and rule not in taken and n % sizes[rule] == 0:
        parts, taken = parts * sizes[rule], taken | {rule}
    total += 4 * p.size // parts
  return total


def replicated(trainer, step, sizes: dict[str, int]) -> list[str]:
  """Arrays of the state of at least 1024 entries that the compiled program takes or returns whole on every device, though the mesh divides an axis."""
  found = []
  state_in, state_out = step.input_shardings[0][0], step.output_shardings[0]
  for name, tree in (('in', state_in), ('out', state_out)):
    for part in ('params', 'opt_state'):
      shapes = jax.tree.leaves(getattr(trainer.shapes(), part))
      for shape, sharding in zip(shapes, jax.tree.leaves(getattr(tree, part)), strict=True):
        if shape.size >= 1024 and math.prod(sharding.shard_shape(shape.shape)) == shape.size and sizes['fsdp'] * sizes['tensor'] > 1:
          found.append(f'{name} {part} {shape.shape}')
  return found


if __name__ == '__main__':
  chips.prepare(None, 8)
  for name in sys.argv[1:]:
    case = experiment(**MESHES[name])
    devices = chips.devices(None, None)[1][:8]
    mesh = meshes.make(case.mesh, devices)
    step = report.compiled(case, mesh)
    plan = report.read(case, None, mesh, step)
    declared = arithmetic(case.model.params(), dict(mesh.shape))
    print(json.dumps(plan.numbers() | dict(name=name, declared=declared, replicated=replicated(loop.trainer(case, mesh), step, dict(mesh.shape)))), flush=True)
