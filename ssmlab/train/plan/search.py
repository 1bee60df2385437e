"""Which meshes and which remat fit, and what to change where an experiment does not: by arithmetic, so that few have to be compiled.

The arithmetic knows the state exactly, and of activations what `train.cost` says; of collectives those of a plain stack: weights gathered over fsdp
for every pass, gradients summed over fsdp, data and sequence, four sums of the residual stream per block over tensor (six with remat).  It takes the
FLOPs as split over all devices, and does not know what a mixer sends along a split sequence.
"""

import dataclasses
import itertools
import math
from typing import Any

from ssmlab.core import mesh as meshes
from ssmlab.core.config import UserError, override
from ssmlab.core.params import size
from ssmlab.train import cost
from ssmlab.train.plan.chips import Chip


@dataclasses.dataclass(frozen=True)
class Guess:
  """An experiment on a mesh by arithmetic.  changes: overrides that lead to it; memory: bytes; seconds: arithmetic and collectives, one after the other."""
  changes: dict[str, Any]
  experiment: Any
  memory: float
  seconds: float

  def __str__(self) -> str:
    return ' '.join(f'{path}={value}' for path, value in self.changes.items())


def guess(experiment, changes: dict[str, Any], chip: Chip, devices: int, scale: float = 1.0) -> Guess | None:
  """The experiment with the changes; None where it cannot be laid out so.  scale: of the activations, from one that was compiled."""
  try:
    for path, value in changes.items():
      experiment = override(experiment, path, value)
    experiment.check_shapes(devices)
  except (UserError, ValueError):
    return None
  sizes = dict(zip(meshes.AXES, experiment.mesh.sizes(devices)))
  return Guess(changes, experiment, state(experiment, sizes) + scale * cost.activation_bytes(experiment, sizes), _seconds(experiment, chip, sizes))


def state(experiment, sizes: dict[str, int]) -> float:
  """Bytes of parameters, gradient and Adam's two moments on one device, in float32."""
  return 16 * cost.on_one_device(experiment.model.params(), sizes)


def _seconds(experiment, chip: Chip, sizes: dict[str, int]) -> float:
  model, data, times = experiment.model, experiment.data, experiment.train.accumulate
  again, itemsize = getattr(model, 'remat', '') in ('block', 'offload'), 2 if model.activations == 'bfloat16' else 4
  tokens = data.batch_size * data.length
  flops = (3 + again) * experiment.flops() * tokens / math.prod(sizes.values())
  weights, ring = size(model.params()) * itemsize / sizes['tensor'], lambda n: (n - 1) / n
  copies = sizes['data'] * sizes['sequence']
  sent = times * weights * ((3 + again) * ring(sizes['fsdp']) + 2 * ring(copies) / sizes['fsdp'])
  sent += 2 * ring(sizes['tensor']) * (4 + 2 * again) * len(model.blocks) * tokens / copies / sizes['fsdp'] * model.width * itemsize
  return flops / chip.flops + sent / chip.links


def ranked(experiment, chip: Chip, devices: int) -> list[Guess]:
  """Every mesh of so many devices with every remat: those that should fit, the fastest first, then the others, the smallest first."""
  divisors = [n for n in range(1, devices + 1) if devices % n == 0]
  remats = ('none', 'dots', 'block') if hasattr(experiment.model, 'remat') else (None,)
  found = []
  for fsdp, tensor, sequence, remat in itertools.product(divisors, divisors, divisors, remats):
    if devices % (fsdp * tensor * sequence) == 0:
      changes = {'mesh.data': 0, 'mesh.fsdp': fsdp, 'mesh.tensor': tensor, 'mesh.sequence': sequence} | ({'model.remat': remat} if remat else {})
      found.append(guess(experiment, changes, chip, devices))
  fits = lambda g: g.memory <= chip.memory
  return sorted(filter(None, found), key=lambda g: (not fits(g), g.seconds if fits(g) else g.memory))


def advice(experiment, needed: float, chip: Chip, devices: int) -> list[str]:
  """Overrides that should make an experiment fit that needs so many bytes: single ones, or else several together; the best first."""
  sizes = dict(zip(meshes.AXES, experiment.mesh.sizes(devices)))
  scale = max((needed - state(experiment, sizes)) / cost.activation_bytes(experiment, sizes), 0.5)
  options, changes = _options(experiment, sizes, devices), {}
  while options:
    tried = [g for option in options if (g := guess(experiment, changes | option, chip, devices, scale))]
    fits = sorted((g for g in tried if g.memory <= chip.memory), key=lambda g: g.seconds)
    if fits:
      seen = set()
      return [f'{g}: about {g.memory / 2**30:.3g} GiB' for g in fits if (name := next(reversed(g.changes))) not in seen and not seen.add(name)]
    least = min(tried, key=lambda g: g.memory, default=None)
    if least is None or least.changes == changes:
      break
    options, changes = [option for option in options if not set(option) & set(least.changes)], least.changes
  return [f'more devices, a smaller model or shorter rows: with {" ".join(f"{k}={v}" for k, v in changes.items())} it still does not fit']


def _options(experiment, sizes: dict[str, int], devices: int) -> list[dict[str, Any]]:
  """Changes that take memory away, one by one."""
  model, options = experiment.model, []
  if hasattr(model, 'remat') and model.remat != 'offload':
    options += [{'model.remat': remat} for remat in ('block', 'offload') if remat != model.remat]
  if model.activations == 'float32':
    options.append({'model.activations': 'bfloat16'})
  options += [{'train.accumulate': n} for n in _doubled(experiment.train.accumulate, experiment.data.batch_size)]
  free = {'mesh.data': 0} if experiment.mesh.data else {}
  return options + [free | {f'mesh.{axis}': n} for axis in ('fsdp', 'tensor', 'sequence') for n in _doubled(sizes[axis], devices)]


def _doubled(value: int, most: int) -> list[int]:
  return [value << n for n in range(1, most.bit_length()) if value << n <= most]
