"""One training step, compiled and read: memory, FLOPs, collectives and the time that the chip's published rates allow."""

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np

from ssmlab.core import mesh as meshes
from ssmlab.core.params import size
from ssmlab.train import loop
from ssmlab.train.plan.chips import Chip
from ssmlab.train.plan.program import Collective, Program


@dataclasses.dataclass(frozen=True)
class Plan:
  """What one step of an experiment takes on each device of a mesh.  Bytes, FLOPs and seconds are of one device and one step.

  held: bytes of 'parameters', 'optimiser' and 'batch', from their shardings.  memory: what the compiler says: 'arguments', 'temporaries',
    'outputs' (those that are not written over arguments), 'program', 'total'; None for what it could not say because it refused.
  useful: FLOPs of three forward passes.  flops: those that run: four, where the backward pass computes blocks again.
  traffic: bytes read and written; an estimate.
  """
  parameters: int
  tokens: int
  mesh: dict[str, int]
  chip: Chip | None
  held: dict[str, int]
  memory: dict[str, float]
  useful: float
  flops: float
  traffic: float | None
  collectives: tuple[Collective, ...] | None

  @property
  def devices(self) -> int:
    return math.prod(self.mesh.values())

  @property
  def fits(self) -> bool | None:
    return None if self.chip is None else self.memory['total'] <= self.chip.memory

  def times(self) -> dict[str, float]:
    """Seconds of arithmetic, memory traffic and collectives, each at the chip's published rate."""
    return dict(arithmetic=self.flops / self.chip.flops, memory=self.traffic / self.chip.bandwidth,
                collectives=sum(move.sent() for move in self.collectives) / self.chip.links)

  def step(self) -> tuple[float, float]:
    """Seconds: the longest of `times`, if the other two hide behind it, and their sum, if nothing does."""
    times = self.times().values()
    return max(times), sum(times)

  def numbers(self) -> dict[str, Any]:
    """Everything as JSON has it."""
    found = dataclasses.asdict(self) | dict(devices=self.devices, fits=self.fits)
    if self.chip and self.collectives is not None:
      fastest, slowest = self.step()
      found |= dict(seconds=self.times(), step_seconds=[fastest, slowest], tokens_per_second=[self.tokens / slowest, self.tokens / fastest],
                    utilisation=[self.useful / self.chip.flops / slowest, self.useful / self.chip.flops / fastest])
    return found


def compiled(experiment, mesh):
  """The training step, compiled for the mesh without data and without parameters."""
  place = lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=meshes.batch_sharding(mesh, array.shape))
  return loop.trainer(experiment, mesh).lower({name: place(array) for name, array in experiment.data.shapes().items()}).compile()


def plan(experiment, chip: Chip | None, devices) -> Plan:
  """Compiles the step of an experiment for these devices and reads it."""
  mesh = meshes.make(experiment.mesh, devices)
  try:
    return read(experiment, chip, mesh, compiled(experiment, mesh))
  except jax.errors.JaxRuntimeError as error:
    if (needed := _refused(str(error))) is None:
      raise
    return Plan(**_known(experiment, chip, mesh), memory=dict(total=needed), traffic=None, collectives=None)


def read(experiment, chip: Chip | None, mesh, step) -> Plan:
  """What a compiled step says."""
  stats, program = step.memory_analysis(), Program(step.as_text(), mesh, on_chip=mesh.devices.flat[0].platform == 'tpu')
  memory = dict(arguments=stats.argument_size_in_bytes, temporaries=stats.temp_size_in_bytes,
                outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes, program=stats.generated_code_size_in_bytes)
  return Plan(**_known(experiment, chip, mesh), memory=memory | dict(total=sum(memory.values()), host=stats.host_temp_size_in_bytes),
              traffic=program.traffic(), collectives=tuple(program.collectives()))


def _known(experiment, chip: Chip | None, mesh) -> dict[str, Any]:
  """The part of a plan that needs no compiler."""
  model, tokens = experiment.model, experiment.data.batch_size * experiment.data.length
  forward = experiment.flops() * tokens / mesh.size
  return dict(parameters=size(model.params()), tokens=tokens, mesh=dict(mesh.shape), chip=chip, held=held(experiment, mesh), useful=3 * forward,
              flops=(4 if getattr(model, 'remat', '') in ('block', 'offload') else 3) * forward)


def held(experiment, mesh) -> dict[str, int]:
  """Bytes of one device that the state and a batch take, from their shapes and shardings."""
  trainer = loop.trainer(experiment, mesh)
  state, where = trainer.shapes(), trainer.shardings()
  batch = experiment.data.shapes()
  return dict(parameters=_per_device(state.params, where.params), optimiser=_per_device(state.opt_state, where.opt_state),
              batch=_per_device(batch, {name: meshes.batch_sharding(mesh, array.shape) for name, array in batch.items()}))


def _per_device(shapes, shardings) -> int:
  one = lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
  return sum(jax.tree.leaves(jax.tree.map(one, shapes, shardings)))


def _refused(message: str) -> float | None:
  """Bytes that the compiler says it needs of a device that has fewer; None where the message is another one."""
  units = dict(B=1, K=2**10, M=2**20, G=2**30, T=2**40)
  used = re.search(r'[Uu]sed ([\d.]+)([BKMGT]) of [\d.]+[BKMGT]? ?hbm', message) or re.search(r'memory required[^(]*\(([\d.]+)([BKMGT])\)', message)
  return float(used.group(1)) * units[used.group(2)] if used else None


def table(plan: Plan, advice: list[str]) -> list[tuple[str, str]]:
  """(name, value) of everything, in the order in which one asks."""
  one = plan.held
  what = f'parameters {_size(one["parameters"])}, optimiser {_size(one["optimiser"])}, batch {_size(one["batch"])}'
  if 'temporaries' in plan.memory:
    what += f'; while it runs {_size(plan.memory["temporaries"])}, program {_size(plan.memory["program"])}'
    what += f'; in the host\'s memory {_size(plan.memory["host"])}' if plan.memory['host'] else ''
  kind = f'{plan.chip.name}, {plan.chip.source}' if plan.chip else 'virtual devices of this CPU'
  rows = [('devices', f'{plan.devices} x {kind}'), ('mesh', ' x '.join(f'{name} {n}' for name, n in plan.mesh.items())),
          ('parameters', f'{plan.parameters:,}'), ('tokens', f'{plan.tokens:,} a step'),
          ('memory per device', f'{_size(plan.memory["total"])}: {what}')]
  if plan.chip:
    share = f'{plan.memory["total"] / plan.chip.memory:.0%} of {_size(plan.chip.memory)}'
    rows.append(('fits', f'yes, {share}' if plan.fits else f'no, {share}'))
  rows.append(('FLOPs per device', f'{plan.flops:.3e} a step, {round(3 * plan.flops / plan.useful)} x forward'))
  if plan.collectives is not None:
    rows += [('bytes per device', f'{_size(plan.traffic)} read and written a step'), *_collectives(plan.collectives)]
  if plan.chip and plan.collectives is not None:
    rows += _times(plan)
  return rows + [('to fit', text) for text in advice]


def _collectives(moves: tuple[Collective, ...]) -> list[tuple[str, str]]:
  """The collectives by kind and axes, those that send most spelt out."""
  groups: dict[tuple[str, str, int], list[Collective]] = {}
  for move in moves:
    groups.setdefault((move.kind, move.axes, move.size), []).append(move)
  rows, sent = [], lambda group: sum(move.sent() for move in group)
  for (kind, axes, among), group in sorted(groups.items(), key=lambda item: -sent(item[1])):
    least = 'at least ' if any(move.at_least for move in group) else ''
    largest = ', '.join(f'{move.count:,} x {_size(move.bytes)}' for move in group[:3]) + (', and smaller ones' if len(group) > 3 else '')
    rows.append((f'{kind}, {axes} ({among})', f'{least}{_size(sent(group))} sent: {largest}'))
  return rows or [('collectives', 'none')]


def _times(plan: Plan) -> list[tuple[str, str]]:
  (fastest, slowest), rate = plan.step(), plan.useful / plan.chip.flops
  spelt = ', '.join(f'{name} {_seconds(seconds)}' for name, seconds in plan.times().items())
  return [('estimated time', f'{spelt}, each at the published rate'),
          ('estimated step', f'{_seconds(fastest)} if all overlap, {_seconds(slowest)} if nothing does'),
          ('estimated tokens/s', f'{plan.tokens / slowest:,.0f} to {plan.tokens / fastest:,.0f}'),
          ('estimated utilisation', f'{rate / slowest:.0%} to {rate / fastest:.0%} of the chip\'s FLOPs, 3 x forward counted'),
          ('measured', 'nothing: no accelerator ran, and no program reaches the published rates')]


def _seconds(seconds: float) -> str:
  return f'{seconds:.3g} s' if seconds >= 1 else f'{1e3 * seconds:.3g} ms'


def _size(count: float) -> str:
  for unit in ('B', 'KiB', 'MiB', 'GiB'):
    if count < 1024:
      return f'{count:.4g} {unit}' if unit != 'B' else f'{count:.0f} B'
    count /= 1024
  return f'{count:.4g} TiB'


def ranking(rows: list[dict[str, Any]], chip: Chip, tried: int) -> str:
  """The rows of a search as a table: by arithmetic first, then as compiled."""
  cells = [('mesh (data x fsdp x tensor x sequence)', 'remat', 'memory by arithmetic', 'time by arithmetic', 'memory compiled', 'step compiled', 'fits')]
  for row in rows:
    changes = row['changes']
    shape = ' x '.join(str(changes[f'mesh.{axis}']) if axis != 'data' else str(row['data']) for axis in meshes.AXES)
    made = '-', '-', 'should' if row['estimated_memory'] <= chip.memory else 'should not'
    if 'memory' in row:
      step = ' to '.join(map(_seconds, row['step_seconds'])) if 'step_seconds' in row else '-'
      made = _size(row['memory']['total']), step, 'yes' if row['fits'] else 'no'
    cells.append((shape, changes.get('model.remat', '-'), _size(row['estimated_memory']), _seconds(row['estimated_seconds']), *made))
  widths = [max(map(len, column)) for column in zip(*cells)]
  lines = ['  '.join(f'{cell:<{width}}' for cell, width in zip(line, widths)).rstrip() for line in cells]
  return '\n'.join([*lines, f'{tried} laid out by arithmetic, {sum("memory" in row for row in rows)} compiled; nothing was measured, no accelerator ran'])
