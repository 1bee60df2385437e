"""The command line: launch, sample, eval, plan, distill, bench.  `ssmlab` and `python -m ssmlab.launch` are the same program."""

import argparse
import dataclasses
import json
import logging
import os
import pathlib
import statistics
import sys
import tempfile

from ssmlab.core.config import UserError
from ssmlab.opening import needs, open_model, with_data

USAGE = """usage: ssmlab COMMAND [--help] ...

  launch EXPERIMENT.py   train an experiment; fields are set by path.to.field=value
  sample WORKDIR         continue a text with a trained or a published model
  eval WORKDIR           held-out loss, perplexity and bits per byte; how diverse the tokens of each layer are; BrierLM;
                         what temperatures cost a CALM
  plan EXPERIMENT.py     memory, FLOPs, collectives and estimated time of a step on devices that are not there
  distill WORKDIR        long convolution filters turned into small recurrent states
  bench SUITE            speed and memory of the operators
"""


def _launch_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('experiment', help='a Python file with config()')
  parser.add_argument('overrides', nargs='*', metavar='field=value', help='e.g. train.steps=100 model.pattern.0.head_dim=32')
  parser.add_argument('--workdir', help='where everything goes; a run found there is continued (default: runs/NAME)')
  parser.add_argument('--quick', action='store_true', help='two steps on a tiny batch, to see that it runs')
  parser.add_argument('--sweep', action='store_true', help='every entry of sweep(), one after another, in WORKDIR/0, 1, ...')
  parser.add_argument('--sweep-index', type=int, metavar='N', help='entry N of sweep() only, for job arrays')
  parser.add_argument('--hosts', default='', metavar='I/N@ADDRESS:PORT', help='this is host I of N, which meet at host 0; found by itself on TPU pods, GKE, '
                      "Slurm, Open MPI ('alone': run by oneself there)")
  parser.add_argument('--print', action='store_true', help='show the resolved config and what it costs; run nothing')


def _sample_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('model', help='a workdir, or a published checkpoint')
  parser.add_argument('--prompt', default='', help='text to continue')
  parser.add_argument('--tokens', type=int, default=200, help='how many to generate (default 200)')
  parser.add_argument('--temperature', type=float, help='default 0.8; of a CALM 1')
  parser.add_argument('--top-p', type=float, help='default 0.95; of a CALM 1')
  parser.add_argument('--top-k', type=int, default=0)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--stop', default='', help='stop where this text appears')
  parser.add_argument('--state', help='a session file: continued if it is there, and written at the end')
  parser.add_argument('--tokenizer', help="for a published checkpoint: 'bytes', a tokenizer.json or an RWKV vocabulary")
  parser.add_argument('--max-length', type=int, default=0, help='tokens that a new session has room for (attention only)')


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('models', nargs='+', metavar='model', help='workdirs, or published checkpoints')
  parser.add_argument('--suite', default='valid', help="a split of the run's data: valid, test or train (default valid); on the validation text, brier: "
                      'BrierLM; diversity: the collapse measures of PanGu-pi, layer by layer; draws: what temperatures cost a CALM')
  parser.add_argument('--data', help='text to measure instead: a file or folder as for data.source Text')
  parser.add_argument('--max-tokens', type=int, help='stop after about so many tokens')
  parser.add_argument('--tokenizer', help="for a published checkpoint: 'bytes', a tokenizer.json or an RWKV vocabulary")
  parser.add_argument('-o', '--output', help='write the numbers as JSON; diversity and draws, a table, as .json or .csv, diversity with a picture beside it, .png')


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
  from ssmlab.train.plan import arguments
  arguments(parser)


def _distill_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('model', help='a workdir, or a published checkpoint')
  parser.add_argument('-o', '--output', required=True, help='folder for the new workdir, with distill.json beside the checkpoint')
  number = parser.add_mutually_exclusive_group()
  number.add_argument('--modes', type=int, help='exponentials per filter')
  number.add_argument('--error', type=float, default=0.3, help='as many as leave at most this share of any filter, in the Hankel norm (default 0.3)')
  parser.add_argument('--data', help='text on which the change of the loss is measured: a file or folder as for data.source Text')
  parser.add_argument('--max-tokens', type=int, default=65536, help='measure the loss on about so many tokens (default 65536)')
  parser.add_argument('--tokenizer', help="for a published checkpoint: 'bytes', a tokenizer.json or an RWKV vocabulary")


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('suite', help=f'one of: {", ".join(_suites())}')
  parser.add_argument('rest', nargs=argparse.REMAINDER, help='arguments of the suite; --help shows them')


def _suites() -> list[str]:
  import pkgutil
  import ssmlab.bench
  return sorted(module.name for module in pkgutil.iter_modules(ssmlab.bench.__path__))


def load_experiment(path: str):
  """The module of an experiment file.  Raises UserError where it is missing, is no experiment or does not import."""
  from ssmlab.train.workdir import load_module
  file = pathlib.Path(path)
  if not file.is_file():
    raise UserError(f'experiment {path} does not exist')
  if file.suffix != '.py':
    raise UserError(f'experiment {path} is not a Python file')
  try:
    module = load_module(file)
  except (SyntaxError, ImportError, NameError) as error:
    raise UserError(f'experiment {path} cannot be imported: {type(error).__name__}: {error}') from error
  if not callable(getattr(module, 'config', None)):
    raise UserError(f'experiment {path} has no function config()')
  return module


def resolve(module, assignments, quick_form: bool = False):
  """The module's experiment with the command line's overrides, in its quick form if asked."""
  import jax
  from ssmlab.core.config import parse
  from ssmlab.train.experiment import Experiment, quick
  experiment = module.config()
  if not isinstance(experiment, Experiment):
    raise UserError(f'{module.__file__}: config() returned a {type(experiment).__name__}, not an Experiment')
  if quick_form:
    experiment = quick(experiment, jax.device_count())
  return parse(experiment, assignments)


def launch(args) -> None:
  from ssmlab.train import hosts
  module = load_experiment(args.experiment)
  points, rows = _points(module, args), []
  if not args.print:
    hosts.start(args.hosts)
  for name, settings in points:
    experiment = resolve(module, (*settings, *args.overrides), args.quick)
    if args.print:
      from ssmlab.train.cost import describe
      print(describe(experiment))
      continue
    with tempfile.TemporaryDirectory() as scratch:
      base = args.workdir or (scratch if args.quick else f'runs/{pathlib.Path(args.experiment).stem}')
      rows.append(dict(entry=name, settings=' '.join(settings)) | _run(experiment, pathlib.Path(base, name)))
  if len(rows) > 1:
    _spread(rows, None if args.quick and not args.workdir else pathlib.Path(base, 'sweep.csv'))


def _spread(rows, path: pathlib.Path | None) -> None:
  """Mean and standard deviation over the entries of a sweep of every number that differs among them, and all of them as a table."""
  from ssmlab import bench
  named = {name: [row[name] for row in rows if isinstance(row.get(name), int | float)] for name in rows[0] if name != 'entry'}
  print(f'\n{len(rows)} entries: mean and standard deviation')
  for name, values in named.items():
    if len(values) == len(rows) and len(set(values)) > 1:
      print(f'{name:<24}  {_number(statistics.mean(values))}  {_number(statistics.stdev(values))}')
  if path:
    bench.write(path, [{name: row.get(name) for name in rows[0]} for row in rows])
    print(f'written to {path}')


def _number(value: float) -> str:
  if not isinstance(value, float):
    return f'{value:,}'
  return f'{value:,.4f}' if abs(value) < 1e9 else f'{value:.4e}'


def _points(module, args) -> list[tuple[str, list[str]]]:
  """(subfolder, overrides) of what is to be run: the experiment itself, or entries of its sweep."""
  if not args.sweep and args.sweep_index is None:
    return [('', [])]
  if not callable(getattr(module, 'sweep', None)):
    raise UserError(f'{args.experiment} has no function sweep()')
  points = [(str(i), [f'{path}={value}' for path, value in entry.items()]) for i, entry in enumerate(module.sweep())]
  if args.sweep_index is None:
    return points
  if not 0 <= args.sweep_index < len(points):
    raise UserError(f'--sweep-index {args.sweep_index}: the sweep has entries 0 to {len(points) - 1}')
  return [points[args.sweep_index]]


def _run(experiment, workdir: pathlib.Path) -> dict[str, float]:
  from ssmlab.train import loop
  summary = loop.run(experiment, workdir)
  numbers = {name: value for name, value in summary.items() if not isinstance(value, str)}
  width = max(map(len, numbers))
  print('\n'.join(f'{name:<{width}}  {_number(value)}' for name, value in numbers.items() if value is not None))
  print(f'workdir: {workdir}')
  return numbers


def sample(args) -> None:
  import jax
  import numpy as np
  from ssmlab.eval.generate import stream
  from ssmlab.eval.session import load_state, save_state
  from ssmlab.models import LM
  from ssmlab.models.calm import CALM
  model, params, tokenizer, _ = open_model(args.model, args.tokenizer)
  needs(LM, model, args.model, 'continues no text')
  prompt = tokenizer.encode(args.prompt)
  state = None
  if args.state and os.path.exists(args.state):
    state = load_state(args.state, model=model, tokenizer=tokenizer)
  else:
    prompt = np.concatenate([[tokenizer.end], prompt]).astype(np.int32)
  if args.tokens < 1:
    raise UserError(f'--tokens {args.tokens}: must be at least 1')
  print(args.prompt, end='', flush=True)
  text, decoder = '', tokenizer.stream()
  plain = isinstance(model, CALM)                            # no probabilities: it draws as it has learned
  chosen = lambda value, usual: value if value is not None else 1.0 if plain else usual
  options = dict(temperature=chosen(args.temperature, 0.8), top_k=args.top_k, top_p=chosen(args.top_p, 0.95), key=jax.random.key(args.seed), state=state,
                 max_length=args.max_length)
  for token, state in stream(model, params, [prompt], args.tokens, **options):
    piece = decoder.push(int(token[0]))
    text += piece
    print(piece, end='', flush=True)
    if int(token[0]) == tokenizer.end or args.stop and args.stop in text:
      break
  print(decoder.flush())
  if args.state:
    save_state(args.state, state, model=model, tokenizer=tokenizer)


SUITES = ('valid', 'test', 'train', 'brier', 'diversity', 'draws')


def evaluate(args) -> None:
  from ssmlab.core import mesh as meshes
  from ssmlab.eval import BrierLM, HeldOut
  split = args.suite
  if split not in SUITES:
    raise UserError(f'--suite {split!r} is not one of {", ".join(SUITES)}')
  if split in ('diversity', 'draws'):
    _table(args, _diversity if split == 'diversity' else _draws)
    return
  split, results = 'valid' if args.data and split in ('train', 'test') else split, {}
  for path in args.models:
    params, experiment = with_data(path, args)
    measure = BrierLM(final_max_tokens=args.max_tokens) if split == 'brier' else HeldOut(split, final_max_tokens=args.max_tokens)
    found = measure.run(experiment, meshes.make(), params, final=True)
    results[path] = {f'{split}/{name}': value for name, value in found.items()}
    if len(args.models) > 1:
      print(f'{path}:')
    for name, value in results[path].items():
      print(f'{name:<20}  {value:,.4f}' if isinstance(value, float) else f'{name:<20}  {value:,}')
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(results if len(results) > 1 else results[args.models[0]], indent=1))


def _table(args, rows_of) -> None:
  """Tables of several models as one, the model in the first column, and what belongs beside it."""
  from ssmlab import bench
  from ssmlab.eval import diversity
  path = bench.table_path(args.output) if args.output else None
  rows = {}
  for model in args.models:
    rows[model] = rows_of(model, *with_data(model, args), args.max_tokens or 65536)
  whole = [(dict(model=model) if len(rows) > 1 else {}) | row for model, of in rows.items() for row in of]
  print(bench.table(whole))
  if path:
    bench.write(path, whole)
  if path and rows_of is _diversity:
    diversity.plot(rows, path.with_suffix('.png'))


def _diversity(path: str, params, experiment, tokens: int):
  from ssmlab.eval import diversity
  from ssmlab.models import LM, Encoder
  if type(experiment.model) not in (LM, Encoder):
    raise UserError(f'{path} is of a {type(experiment.model).__name__}; diversity is measured of an LM or an Encoder')
  return diversity.by_depth(experiment.model, params, experiment.data.eval_batches('valid', tokens))


def _draws(path: str, params, experiment, tokens: int):
  from ssmlab.eval import temperature
  from ssmlab.models import CALM
  needs(CALM, experiment.model, path, 'draws from probabilities: a temperature costs it nothing')
  return temperature.draws(experiment.model, params, experiment.data.eval_batches('valid', tokens))


def plan(args) -> None:
  from ssmlab.train import plan
  plan.chips.prepare(args.topology, args.devices)
  sys.exit(not plan.run(resolve(load_experiment(args.experiment), args.overrides), args))


def distill(args) -> None:
  from ssmlab.bench import table
  from ssmlab.core import mesh as meshes
  from ssmlab.eval.distill import distill
  from ssmlab.eval.heldout import HeldOut
  from ssmlab.models import LM
  from ssmlab.train import workdir
  output = pathlib.Path(args.output)
  workdir.refuse_run(output)
  params, experiment = with_data(args.model, args)
  needs(LM, experiment.model, args.model, 'has no long filters')
  model, found, rows = distill(experiment.model, params, modes=args.modes, error=args.error, length=experiment.data.length)
  print(table(rows))
  other = dataclasses.replace(experiment, model=model)
  measure = lambda of, params: HeldOut('valid', final_max_tokens=args.max_tokens).run(of, meshes.make(), params, final=True)['loss']
  before, after = measure(experiment, params), measure(other, found)
  print(f'valid/loss: {before:.4f} before, {after:.4f} distilled, a change of {after - before:+.4f}')
  workdir.save(other, found, experiment.train.steps, output)
  (output / 'distill.json').write_text(json.dumps(dict(loss=dict(before=before, distilled=after), layers=rows), indent=1) + '\n')
  print(f'workdir: {output}')


def bench(args) -> None:
  import importlib
  if args.suite not in _suites():
    raise UserError(f'bench {args.suite!r} is not one of {", ".join(_suites())}')
  importlib.import_module(f'ssmlab.bench.{args.suite}').main(args.rest)


COMMANDS = {'launch': (launch, _launch_arguments), 'sample': (sample, _sample_arguments),
            'eval': (evaluate, _eval_arguments), 'plan': (plan, _plan_arguments), 'distill': (distill, _distill_arguments), 'bench': (bench, _bench_arguments)}


def main(argv: list[str] | None = None) -> None:
  """Runs a command.  What the user can mend becomes one line on standard error and exit status 2."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if argv and argv[0].endswith('.py'):
    argv = ['launch', *argv]                                 # python -m ssmlab.launch EXPERIMENT.py
  if not argv or argv[0] in ('-h', '--help'):
    print(USAGE, end='')
    return
  if argv[0] not in COMMANDS:
    sys.exit(_refuse(f'unknown command {argv[0]!r}; it is one of {", ".join(COMMANDS)}'))
  action, arguments = COMMANDS[argv[0]]
  parser = argparse.ArgumentParser(prog=f'ssmlab {argv[0]}')
  arguments(parser)
  parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
  args = parser.parse_args(argv[1:]) if action is bench else parser.parse_intermixed_args(argv[1:])
  if not args.debug:                                         # Orbax logs tracebacks of what becomes one line here
    for name in ('absl', 'asyncio'):
      logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable
  try:
    action(args)
  except (UserError, ValueError, OSError) as error:
    if args.debug:
      raise
    sys.exit(_refuse(' '.join(str(error).split())))
  except KeyboardInterrupt:
    sys.exit(_refuse('interrupted; complete checkpoints are kept') and 130)


def _unraisable(caught) -> None:
  """Says what nobody could catch, except what TensorStore's threads raise after a failed write, which is reported by then."""
  if not (caught.exc_type is RuntimeError and str(caught.exc_value) == 'Event loop is closed'):
    sys.__unraisablehook__(caught)


def _refuse(line: str) -> int:
  print(f'ssmlab: {line}', file=sys.stderr)
  return 2


if __name__ == '__main__':
  main()
