"""Every mixer against length: time per token of prefill, training and decoding, memory, state.  The field's seed claim, linear against quadratic."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ssmlab import bench
from ssmlab.core.config import UserError
from ssmlab.core.params import init


def run(models: dict[str, Any], lengths: Sequence[int], repeats: int = 3, batch: int = 1) -> list[dict[str, Any]]:
  """One row per model's first mixer and length.

  models: name -> LM; the mixer is measured alone, at the model's width, float32 parameters, random inputs.
  Columns: microseconds per token of forward, of forward + backward (best of `repeats`), and of one decoding step after `length` tokens;
  training_MiB: temporary memory of the compiled gradient; state_bytes per sequence; flops: forward FLOPs per token by arithmetic.
  """
  rows = []
  for name, model in models.items():
    mixer = model.blocks[0].mixer
    params = init(jax.random.key(0), mixer.params(model.width))
    params = jax.tree.map(lambda a: a + 0.01, params)                              # matrices that start at zero would be too easy
    for length in lengths:
      rows.append(dict(mixer=name, width=model.width, length=length, **_measure(mixer, params, model.width, batch, length, repeats)))
  return rows


def _measure(mixer, params, width: int, batch: int, length: int, repeats: int) -> dict[str, float]:
  x = jax.random.normal(jax.random.key(1), (batch, length, width))
  forward = jax.jit(lambda params, x: mixer.apply(params, x)[0]).lower(params, x).compile()
  loss = lambda params, x: jnp.mean(mixer.apply(params, x)[0] ** 2)
  gradient = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile()
  state = mixer.init_state(width, batch, length + 1)
  _, state = jax.jit(mixer.apply)(params, x, state)
  step = jax.jit(mixer.apply).lower(params, x[:, :1], state).compile()
  per_token = 1e6 / (batch * length)
  return dict(
      forward_us=per_token * bench.seconds(lambda: forward(params, x), repeats),
      training_us=per_token * bench.seconds(lambda: gradient(params, x), repeats),
      decode_us=1e6 / batch * bench.seconds(lambda: step(params, x[:, :1], state), 20 * repeats),
      training_MiB=gradient.memory_analysis().temp_size_in_bytes / 2 ** 20,
      state_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(state)) // batch,
      flops=mixer.flops(width, length))


def plot(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
  """Time per token against length, one panel per use, one line per mixer."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  figure = Figure(figsize=(13, 4.6), layout='constrained')
  FigureCanvasAgg(figure)
  panels = (('forward_us', 'prefill'), ('training_us', 'forward + backward'), ('decode_us', 'one decoding step'), ('state_bytes', 'state'))
  names = list(dict.fromkeys(row['mixer'] for row in rows))
  for axes, (column, title) in zip(figure.subplots(1, len(panels)), panels):
    for index, name in enumerate(names):
      points = [(row['length'], row[column]) for row in rows if row['mixer'] == name]
      axes.plot(*zip(*points), marker='o', ms=3, lw=1.3, color=f'C{index % 10}', ls=('-', '--', ':')[index // 10 % 3], label=name)
    unit = 'bytes per sequence' if column == 'state_bytes' else 'microseconds per token'
    axes.set(xscale='log', yscale='log', xlabel='length, tokens', ylabel=unit, title=title)
    axes.set_xscale('log', base=2)
    axes.grid(alpha=0.3)
  figure.legend(*axes.get_legend_handles_labels(), loc='outside right upper', frameon=False, fontsize=8)
  figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
  from ssmlab.launch import load_experiment, resolve
  parser = argparse.ArgumentParser(prog='ssmlab bench mixers', description=__doc__)
  parser.add_argument('experiments', nargs='*', help='files whose first mixer is measured (default: experiments/quickstart*.py and *_small.py)')
  parser.add_argument('--lengths', type=int, nargs='+', default=[256, 1024, 4096, 16384], help='default %(default)s')
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--batch', type=int, default=1)
  parser.add_argument('-o', '--output', type=pathlib.Path, default=pathlib.Path('runs/bench_mixers'), help='folder for rows.csv, rows.json and mixers.png (default %(default)s)')
  options = parser.parse_args(argv)
  folder = pathlib.Path('experiments')
  files = [pathlib.Path(name) for name in options.experiments] or sorted({*folder.glob('quickstart*.py'), *folder.glob('*_small.py')})
  if not files:
    raise UserError('no experiments/ here; name the files to measure')
  rows = []
  for file in files:
    model = resolve(load_experiment(str(file)), []).model
    name = type(model.blocks[0].mixer).__name__
    for row in run({name: model}, options.lengths, options.repeats, options.batch):
      rows.append(row)
      print('  '.join(f'{value:>12.1f}' if isinstance(value, float) else f'{value!s:>12}' for value in row.values()), flush=True)
  for name in ('rows.json', 'rows.csv'):
    bench.write(options.output / name, rows)
  plot(rows, options.output / 'mixers.png')
  print(f'columns: {", ".join(rows[0])}; written to {options.output}')


if __name__ == '__main__':
  main()
