"""Weak scaling of an experiment's training step over virtual devices of this CPU: the same rows for every device, along each axis of the mesh.

The devices share the machine's cores, so n of them with n times the rows take n times as long as one, and an overhead: what the collectives take,
what is computed more than once, and what smaller or larger pieces lose.  The step's collectives, found in its compiled text, are run once more by
themselves; `traffic_times` is what a device reads and writes in a step over what one device alone does: above 1 it does what others do too (with
`tensor`, everything as wide as the residual stream).
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ssmlab import bench
from ssmlab.core import mesh as meshes
from ssmlab.core.config import UserError

AXES = ('data', 'fsdp', 'tensor', 'sequence')


def run(experiment, most: int = 8, rows: int = 2, repeats: int = 5) -> list[bench.Row]:
  """One row per axis and number of devices: milliseconds of the step, its overhead over as many times one device's, the traffic, the collectives
  alone.

  rows: of a batch, for every device.  most: devices; two and so many are measured.
  """
  cases = [(AXES[0], 1)] + [(axis, count) for axis in AXES for count in sorted({2, most})]
  moves, steps, alone, traffic = {}, {}, {}, {}
  for axis, count in cases:
    mesh = meshes.make(meshes.MeshConfig(**{axis: count}), jax.devices()[:count])
    sized = dataclasses.replace(experiment, mesh=meshes.MeshConfig(**{axis: count}), data=dataclasses.replace(experiment.data, batch_size=rows * count))
    sized.check_shapes(count)
    steps[axis, count], program = _step(sized, mesh)
    moves[axis, count], traffic[axis, count] = program.collectives(), program.traffic()
    alone[axis, count] = [_again(move, mesh) for move in moves[axis, count] if move.axes != 'none']
  taken = bench.in_turns(steps, repeats)
  sent = bench.in_turns({case: lambda calls=calls: [call() for call in calls] for case, calls in alone.items()}, repeats)
  found = []
  for axis, count in cases:
    overhead = taken[axis, count] - count * taken[AXES[0], 1]
    found.append(dict(axis=axis if count > 1 else '-', devices=count, step_ms=1e3 * taken[axis, count], overhead_ms=1e3 * overhead,
                      overhead_share=overhead / count / taken[AXES[0], 1],
                      traffic_times=traffic[axis, count] / traffic[AXES[0], 1], collectives_ms=1e3 * sent[axis, count] if count > 1 else 0.0,
                      collectives=sum(move.count for move in moves[axis, count]), sent_MB=sum(move.sent() for move in moves[axis, count]) / 1e6))
  return found


def _step(experiment, mesh):
  """(one call of the training step, its program)."""
  from ssmlab.train import loop
  from ssmlab.train.plan.program import Program
  trainer = loop.trainer(experiment, mesh)
  batch = {name: jax.device_put(jnp.ones(array.shape, array.dtype), meshes.batch_sharding(mesh, array.shape))
           for name, array in experiment.data.shapes().items()}
  step = trainer.lower(batch).compile()
  state = [trainer.fresh(0)]

  def call():
    state[0], measured = step(state[0], batch)
    return measured
  return call, Program(step.as_text(), mesh, on_chip=False)


def _again(move, mesh):
  """The collective by itself, as often as the step runs it, on zeros of its size."""
  axes = tuple(move.axes.split(' x '))
  size = functools.reduce(lambda n, axis: n * mesh.shape[axis], axes, 1)
  elements = max(move.bytes // 4, 1)
  pairs = [(i, (i + 1) % size) for i in range(size)]
  whole = -(-elements // size) * size
  forms = {'all-reduce': (elements, lambda x: jax.lax.psum(x, axes) / size),
           'all-gather': (whole // size, lambda x: jax.lax.all_gather(x, axes, tiled=True)[:whole // size]),
           'reduce-scatter': (elements * size, lambda x: jnp.tile(jax.lax.psum_scatter(x, axes, tiled=True), size)),
           'all-to-all': (whole, lambda x: jax.lax.all_to_all(x, axes, 0, 0, tiled=True)),
           'collective-permute': (elements, lambda x: jax.lax.ppermute(x, axes, pairs))}
  length, one = forms[move.kind]
  local = lambda x: jax.lax.fori_loop(0, move.count, lambda _, x: one(x), x)
  everywhere = PartitionSpec(mesh.axis_names)
  call = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False))
  x = jax.device_put(jnp.zeros((length * mesh.size,), jnp.float32), NamedSharding(mesh, everywhere))
  return lambda: call(x)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog='ssmlab bench scaling', description=__doc__)
  parser.add_argument('experiment', help='a Python file with config()')
  parser.add_argument('overrides', nargs='*', metavar='field=value', help='e.g. data.length=256')
  for name, default in (('devices', 8), ('rows', 2), ('repeats', 5)):
    parser.add_argument(f'--{name}', type=int, default=default, help='default %(default)s')
  parser.add_argument('-o', '--output', help='also write the table here, .json or .csv')
  args = parser.parse_intermixed_args(argv)
  path = bench.table_path(args.output) if args.output else None
  from ssmlab import launch
  from ssmlab.train.plan import chips
  chips.prepare(None, args.devices)
  if args.devices < 2:
    raise UserError(f'--devices {args.devices}: must be at least 2')
  if len(jax.devices()) < args.devices:
    raise UserError(f'--devices {args.devices}: this process has {len(jax.devices())} already')
  found = run(launch.resolve(launch.load_experiment(args.experiment), args.overrides), args.devices, args.rows, args.repeats)
  print(bench.table(found))
  if path:
    bench.write(path, found)
  return 0


if __name__ == '__main__':
  sys.exit(main())
