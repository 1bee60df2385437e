"""Every mixer against length: time per token of prefill, training and decoding, memory, state.  The field's seed claim, linear against quadratic."""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ssmlab import bench
from ssmlab.core.config import UserError
from ssmlab.core.params import init
from ssmlab.mixers.segmented import Segmented
from ssmlab.models import LM


STEPS = 64                                                  # of decoding, in one compiled loop


def run(models: dict[str, Any], lengths: Sequence[int], batch: int = 4, repeats: int = 5, segment: int = 0) -> list[bench.Row]:
  """One row per model's first mixer and length.

  models: name -> LM; the mixer is measured alone, at the model's width, float32 parameters, random inputs.
  batch: sequences, the same number at every length: with the same number of tokens instead, a longer batch would hold fewer sequences, and a
    recurrence would have fewer lanes to run over at a time.
  segment: tokens that a mixer whose state does not grow with the length reads at a time (mixers.segmented); 0: all at once.
  Columns: microseconds per token of forward and of forward + backward (best of `repeats`, each of as many tokens as the longest length has, so
  that a short length has no more chances of a quiet moment than a long one); of one of 64 decoding steps of one sequence
  after `length` tokens; training_MiB: temporary memory of the compiled gradient; state_bytes per sequence; flops: forward FLOPs per token by
  arithmetic.
  """
  return [row for name, model in models.items() for row in _rows(name, model, lengths, batch, repeats, segment)]


def _rows(name: str, model, lengths: Sequence[int], batch: int, repeats: int, segment: int) -> list[bench.Row]:
  mixer = model.blocks[0].mixer
  params = init(jax.random.key(0), mixer.params(model.width))
  if segment and _state_bytes(mixer, model.width, 2) == _state_bytes(mixer, model.width, 1):
    mixer = Segmented(mixer, segment)
  else:
    segment = 0
  params = jax.tree.map(lambda a: a + 0.01, params)                                # matrices that start at zero would be too easy
  rows, actions = [], dict(forward={}, training={}, decode={})
  for length in lengths:
    more, of_length = _actions(mixer, params, model.width, batch, length)
    rows.append(dict(mixer=name, width=model.width, batch=batch, segment=segment, length=length) | more)
    for use, action in of_length.items():
      actions[use][length] = action
  for use, of_use in actions.items():
    times = {length: 1 if use == 'decode' else max(lengths) // length for length in of_use}
    taken = bench.in_turns({length: _repeated(action, times[length]) for length, action in of_use.items()}, repeats, calls=20 if use == 'decode' else 1)
    for row in rows:
      row[f'{use}_us'] = 1e6 * taken[row['length']] / times[row['length']] / (STEPS if use == 'decode' else row['batch'] * row['length'])
  return rows


def _repeated(action, times: int):
  """The action so many times, each waited for."""
  return lambda: [jax.block_until_ready(action()) for _ in range(times)][-1]


def _actions(mixer, params, width: int, batch: int, length: int):
  """(the columns that are not times, {use: what is to be timed})."""
  x = jax.random.normal(jax.random.key(1), (batch, length, width))
  forward = jax.jit(lambda params, x: mixer.apply(params, x)[0]).lower(params, x).compile()
  loss = lambda params, x: jnp.mean(mixer.apply(params, x)[0] ** 2)
  gradient = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile()
  _, state = jax.jit(mixer.apply)(params, x[:1], mixer.init_state(width, 1, length + STEPS))
  steps = jax.jit(lambda params, x, state: _decoded(mixer, params, x, state)).lower(params, x[:1, :1], state).compile()
  columns = dict(training_MiB=gradient.memory_analysis().temp_size_in_bytes / 2 ** 20, state_bytes=_state_bytes(mixer, width, length),
                 flops=mixer.flops(width, length))
  return columns, dict(forward=lambda: forward(params, x), training=lambda: gradient(params, x), decode=lambda: steps(params, x[:1, :1], state))


def _decoded(mixer, params, x, state):
  """Token after token, each made of what the mixer said of the one before, so that no step can be computed ahead."""
  def step(carried, _):
    y, state = mixer.apply(params, *carried)
    return (jnp.tanh(y), state), None
  return jax.lax.scan(step, (x, state), length=STEPS)[0]


def _state_bytes(mixer, width: int, length: int) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(lambda: mixer.init_state(width, 1, length))))


PANELS = (('forward_us', 'prefill', 'microseconds per token'), ('training_us', 'forward + backward', 'microseconds per token'),
          ('decode_us', 'one decoding step after so many tokens', 'microseconds'), ('flops', 'forward FLOPs by arithmetic', 'per token'),
          ('state_bytes', 'state', 'bytes per sequence'))


def plot(rows: Sequence[bench.Row], path: pathlib.Path) -> None:
  """Time, FLOPs and state against length, one panel per use, one line per mixer; attention is the thick black one."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  figure = Figure(figsize=(15, 8.5), layout='constrained')
  FigureCanvasAgg(figure)
  names = sorted({row['mixer'] for row in rows})
  *panels, last = figure.subplots(2, 3).flat
  for axes, (column, title, unit) in zip(panels, PANELS):
    for index, name in enumerate(names):
      points = [(row['length'], row[column]) for row in rows if row['mixer'] == name]
      style = dict(color=f'C{index % 10}', ls=('-', '--', ':')[index // 10 % 3], lw=1.2, marker='.')
      if name == 'Attention':
        style = dict(color='black', lw=3.5, marker='o', zorder=3)
      axes.plot(*zip(*points), label=name, **style)
    axes.set(xscale='log', yscale='log', xlabel='length, tokens', ylabel=unit, title=title)
    axes.set_xscale('log', base=2)
    axes.grid(alpha=0.3)
  last.axis('off')
  last.legend(*axes.get_legend_handles_labels(), ncols=3, loc='center', frameon=False, fontsize=10)
  figure.savefig(path, dpi=100)


def growth(rows: Sequence[bench.Row], start: int = 1024) -> list[bench.Row]:
  """How each mixer's time and FLOPs per token grow from `start` tokens (or the shortest measured) to the longest: 1.0 is flat."""
  result = []
  for name in dict.fromkeys(row['mixer'] for row in rows):
    of = sorted((row for row in rows if row['mixer'] == name), key=lambda row: row['length'])
    first, last = next((row for row in of if row['length'] >= start), of[-1]), of[-1]
    result.append(dict(mixer=name, lengths=f"{first['length']} -> {last['length']}") |
                  {column.removesuffix('_us'): round(last[column] / first[column], 3) for column in ('forward_us', 'training_us', 'decode_us', 'flops')})
  return result


def main(argv: Sequence[str] | None = None) -> None:
  from ssmlab.launch import load_experiment, resolve
  parser = argparse.ArgumentParser(prog='ssmlab bench mixers', description=__doc__)
  parser.add_argument('experiments', nargs='*', help='files whose first mixer is measured (default: the language models of experiments/quickstart*.py and *_small.py, without a longest length, no hybrids)')
  parser.add_argument('--lengths', type=int, nargs='+', default=[256, 1024, 4096, 16384], help='default %(default)s')
  parser.add_argument('--repeats', type=int, default=5, help='calls of which the fastest counts (default %(default)s)')
  parser.add_argument('--batch', type=int, default=4, help='sequences, at every length (default %(default)s)')
  parser.add_argument('--segment', type=int, default=512, help='tokens that a mixer with a state of constant size reads at a time; 0: all at once (default %(default)s)')
  parser.add_argument('-o', '--output', type=pathlib.Path, default=pathlib.Path('runs/bench_mixers'), help='folder for rows.csv, rows.json and mixers.png (default %(default)s)')
  options = parser.parse_args(argv)
  folder, model_of = pathlib.Path('experiments'), lambda file: resolve(load_experiment(str(file)), []).model
  files = [pathlib.Path(name) for name in options.experiments] or sorted({*folder.glob('quickstart*.py'), *folder.glob('*_small.py')} - {*folder.glob('hybrid_*')})
  models = {file: model_of(file) for file in files}
  if not options.experiments:
    models = {file: model for file, model in models.items() if type(model) is LM and model.max_length is None}        # long filters: bench longconv
  if not models:
    raise UserError('no experiments/ here; name the files to measure')
  if other := [str(file) for file, model in models.items() if not isinstance(model, LM)]:
    raise UserError(f'{other[0]}: bench mixers measures causal models only')
  if short := [str(file) for file, model in models.items() if (model.max_length or max(options.lengths)) < max(options.lengths)]:
    raise UserError(f'{short[0]} reads {models[pathlib.Path(short[0])].max_length} tokens at most; --lengths {max(options.lengths)} is above')
  if options.segment < 0:
    raise UserError(f'--segment {options.segment}: must be at least 0')
  bench.keep_memory()
  rows = []
  for model in models.values():
    name = type(model.blocks[0].mixer).__name__
    for row in run({name: model}, options.lengths, options.batch, options.repeats, options.segment):
      rows.append(row)
      print(f"{name} {row['length']}", file=sys.stderr, flush=True)
  for name in ('rows.json', 'rows.csv'):
    bench.write(options.output / name, rows)
  plot(rows, options.output / 'mixers.png')
  print(bench.table(rows))
  print('\ntime and FLOPs per token, longest over shortest:')
  print(bench.table(growth(rows)))
  print(f'\nwritten to {options.output}')


if __name__ == '__main__':
  main()
