"""BrierLM against cross entropy over checkpoints of autoregressive models: whether the one says what the other does.  CALM, arXiv 2510.27688,
section 4: Pearson -0.966 and Spearman -0.991 over the checkpoints of three Transformers.

Experiments are trained for a while with both measured on the way; of workdirs what they measured is read.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np

from ssmlab import bench
from ssmlab.core.config import UserError
from ssmlab.eval.brier import BrierLM
from ssmlab.eval.heldout import HeldOut
from ssmlab.eval.scores import pearson, spearman

COLUMNS = ('brierlm', 'low', 'high', 'brier_1', 'brier_2', 'brier_3', 'brier_4')


def measured(experiment, steps: int, points: int, max_tokens: int, stride: int):
  """The experiment for `steps` steps, cross entropy and BrierLM measured on the same text at `points` equal intervals."""
  if points < 3 or steps < points:
    raise UserError(f'--points {points} of --steps {steps}: at least 3, and no more than the steps')
  same = dict(every=steps // points, max_tokens=max_tokens, final_max_tokens=max_tokens)
  evals = ('valid', HeldOut(**same)), ('brier', BrierLM(stride=stride, **same))
  return dataclasses.replace(experiment, evals=evals, train=dataclasses.replace(experiment.train, steps=steps // points * points, checkpoint_every=0))


def read(workdir: pathlib.Path, name: str) -> list[bench.Row]:
  """One row per step at which a run measured both: model, step, tokens, loss, BrierLM and its interval, Brier-1 ... Brier-4."""
  file = workdir / 'metrics.jsonl'
  if not file.is_file():
    raise UserError(f'{workdir} is not a workdir: it has no metrics.jsonl')
  found: dict[int, dict] = {}
  for line in file.read_text(encoding='utf-8').splitlines():
    row = json.loads(line)
    found.setdefault(row['step'], {}).update(row)
  rows = [dict(model=name, step=step, tokens=row['tokens'], loss=row['valid/loss'], **{column: row[f'brier/{column}'] for column in COLUMNS})
          for step, row in sorted(found.items()) if 'valid/loss' in row and 'brier/brierlm' in row]
  if not rows:
    raise UserError(f"{workdir} measured no BrierLM: its evals need ('valid', HeldOut(every=N)) and ('brier', BrierLM(every=N))")
  return rows


def agreement(rows: Sequence[bench.Row]) -> list[bench.Row]:
  """Pearson's and Spearman's correlation of BrierLM and loss: of each model's checkpoints, then of all."""
  def one(name, rows):
    loss, score = (np.array([row[column] for row in rows]) for column in ('loss', 'brierlm'))
    return dict(model=name, checkpoints=len(rows), pearson=pearson(loss, score), spearman=spearman(loss, score))
  names = list(dict.fromkeys(row['model'] for row in rows))
  of = [one(name, [row for row in rows if row['model'] == name]) for name in names]
  return of if len(names) == 1 else [*of, one('all', rows)]


def plot(rows: Sequence[bench.Row], path: pathlib.Path) -> None:
  """BrierLM with its 95% interval against cross entropy, one colour per model; r is over all points."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  figure = Figure(figsize=(7, 5), layout='constrained')
  FigureCanvasAgg(figure)
  axes, found = figure.subplots(), agreement(rows)
  for index, of in enumerate(dict.fromkeys(row['model'] for row in rows)):
    points = [row for row in rows if row['model'] == of]
    loss, score, low, high = (np.array([row[column] for row in points]) for column in ('loss', 'brierlm', 'low', 'high'))
    axes.errorbar(loss, score, yerr=np.maximum([score - low, high - score], 0), fmt='.-', capsize=2, lw=1, label=f'{of}, r = {found[index]["pearson"]:.3f}')
  axes.set(xlabel='cross entropy, nats per token', ylabel='BrierLM', ylim=(0, None),
           title=f'{len(rows)} checkpoints: Pearson r = {found[-1]["pearson"]:.3f}, Spearman {found[-1]["spearman"]:.3f}')
  axes.grid(alpha=0.3)
  axes.legend(frameon=False)
  figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
  from ssmlab.launch import load_experiment, resolve
  from ssmlab.train import loop
  parser = argparse.ArgumentParser(prog='ssmlab bench brier', description=__doc__)
  parser.add_argument('runs', nargs='+', help='experiment files, which are trained, or workdirs')
  for name, default in (('steps', 300), ('points', 12), ('max-tokens', 8192), ('stride', 4)):
    parser.add_argument(f'--{name}', type=int, default=default, help='of the training; default %(default)s')
  parser.add_argument('--workdir', help='keep the training runs here')
  parser.add_argument('-o', '--output', help='also write the table here, .csv or .json, and the picture beside it, .png')
  options = parser.parse_args(argv)
  path = bench.table_path(options.output) if options.output else None
  rows = []
  with tempfile.TemporaryDirectory() as scratch:
    for run in options.runs:
      where, name = pathlib.Path(run), pathlib.Path(run).stem if run.endswith('.py') else run
      if run.endswith('.py'):
        experiment = measured(resolve(load_experiment(run), []), options.steps, options.points, options.max_tokens, options.stride)
        where = pathlib.Path(options.workdir or scratch, name)
        loop.run(experiment, where)
      rows += read(where, name)
  print(bench.table(rows), bench.table(agreement(rows)), sep='\n\n')
  if path:
    bench.write(path, rows)
    plot(rows, path.with_suffix('.png'))


if __name__ == '__main__':
  main()
