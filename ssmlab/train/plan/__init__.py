"""What a training step needs of devices that need not be there: `ssmlab plan`.

program.py reads what the compiler made, chips.py knows and describes devices, report.py makes the table.
"""

import json
import pathlib
import sys

from ssmlab.core.config import UserError
from ssmlab.train.plan import chips, report


def run(experiment, args) -> bool:
  """Compiles the experiment's step for the devices that `args` names and prints what it takes; False if it does not fit."""
  if args.output and not args.output.endswith('.json'):
    raise UserError(f'-o {args.output}: expected a name that ends in .json')
  chip, devices = chips.devices(args.topology, args.devices)
  experiment.check_shapes(len(devices))
  print(f'compiling for {len(devices)} x {chip.name if chip else "CPU"}; this takes a minute or several for a large model', file=sys.stderr, flush=True)
  plan = report.plan(experiment, chip, devices)
  rows = report.table(plan, [])
  width = max(len(name) for name, _ in rows)
  print('\n'.join(f'{name:<{width}}  {value}' for name, value in rows))
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(plan.numbers(), indent=1) + '\n')
  return plan.fits is not False
