"""What a training step needs of devices that need not be there: `ssmlab plan`.

chips.py knows and describes devices, program.py reads what the compiler made for them, report.py makes the table, search.py tries others by arithmetic.
"""

import json
import pathlib
import sys

from ssmlab.core.config import UserError
from ssmlab.train.plan import chips, report, search


def arguments(parser) -> None:
  parser.add_argument('experiment', help='a Python file with config()')
  parser.add_argument('overrides', nargs='*', metavar='field=value', help='e.g. mesh.fsdp=16 model.remat=block')
  parser.add_argument('--topology', help='compile for a TPU slice or GPUs that need not be here: v5e:16x16, v5p:4x4x4, h200:8 '
                      '(default: virtual devices of this CPU)')
  parser.add_argument('--devices', type=int, metavar='N', help='virtual devices of this CPU (default 1)')
  parser.add_argument('--search', action='store_true', help='rank every mesh and remat by arithmetic and compile the best; needs a --topology')
  parser.add_argument('--compile', type=int, default=3, metavar='N', help='with --search: how many to compile (default 3)')
  parser.add_argument('-o', '--output', help='write the numbers as JSON')


def run(experiment, args) -> bool:
  """Compiles the experiment's step for the devices that `args` names and prints what it takes; False if it does not fit."""
  if args.output and not args.output.endswith('.json'):
    raise UserError(f'-o {args.output}: expected a name that ends in .json')
  if args.search and not args.topology:
    raise UserError('--search needs a --topology: a CPU has no published rates to rank by')
  chip, devices = chips.devices(args.topology, args.devices)
  found = _search(experiment, chip, devices, args.compile) if args.search else _one(experiment, chip, devices)
  if args.output:
    path = pathlib.Path(args.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + '\n')
  return any(row['fits'] is not False for row in found) if args.search else found['fits'] is not False


def _one(experiment, chip, devices):
  experiment.check_shapes(len(devices))
  plan = _compiled(experiment, chip, devices)
  advice = search.advice(experiment, plan.memory['total'], chip, len(devices)) if plan.fits is False else []
  rows = report.table(plan, advice)
  width = max(len(name) for name, _ in rows)
  print('\n'.join(f'{name:<{width}}  {value}' for name, value in rows))
  return plan.numbers() | dict(to_fit=advice)


def _search(experiment, chip, devices, compile_best: int):
  """The ranking as rows, its best ones compiled."""
  ranking = search.ranked(experiment, chip, len(devices))
  if not ranking:
    raise UserError(f'--search: no mesh of {len(devices)} devices suits the experiment; its own: data.batch_size={experiment.data.batch_size}')
  rows = []
  for place, guess in enumerate(ranking[:max(10, compile_best)]):
    data = guess.experiment.mesh.sizes(len(devices))[0]
    row = dict(changes=guess.changes, data=data, estimated_memory=guess.memory, estimated_seconds=guess.seconds, fits=None)
    if place < compile_best:
      row |= _compiled(guess.experiment, chip, devices, str(guess)).numbers()
    rows.append(row)
  print(report.ranking(rows, chip, len(ranking)))
  return rows


def _compiled(experiment, chip, devices, what: str = 'the step'):
  print(f'compiling {what} for {len(devices)} x {chip.name if chip else "CPU"}; minutes for a large model', file=sys.stderr, flush=True)
  return report.plan(experiment, chip, devices)
