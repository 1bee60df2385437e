"""Long convolutions: the Hyena operator against attention, its four ways of generating, and PyTorch's FFT convolution, over length.

The first is figure 4.3 of Hyena Hierarchy, arXiv 2302.10866, for this machine, with the crossover length.  Attention is ops.attention in its
best form for the platform.  The last part runs where PyTorch is installed (pip install 'ssmlab[peers]'), with as many threads on both sides.
"""

import argparse
import importlib.util
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab import bench
from ssmlab.core.params import init
from ssmlab.layers.filters import ExplicitFilter, ImplicitFilter, ModalFilter
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.hyena import Hyena
from ssmlab.ops.causal_convolution import causal_convolution
from ssmlab.ops.causal_convolution.streaming import FORMS

CHUNK = 1024             # tokens per call when generating: a scan, so that dispatching from Python does not count


def against_attention(lengths: Sequence[int], width: int, repeats: int, budget: float) -> list[bench.Row]:
  """One row per operator and length, batch 1: seconds `forward` and `both` (with the gradient of weights and input), temporary MiB of each.

  A point that memory refuses, or that would by the last two points take longer than `budget` seconds a call, is NaN, and `left_out` says why.
  """
  rows, reasons, last = [], {}, {}
  for length in lengths:
    mixers = {'Hyena': Hyena(ImplicitFilter(l_max=length)), 'attention': Attention(heads=max(width // 64, 1), head_dim=min(width, 64))}
    made = {}
    for name, mixer in mixers.items():
      for use in ('forward', 'both'):
        made[name, use] = (lambda: math.nan, math.nan)
        if not reasons.get((name, use)):
          expected = last.get((name, use), 0.0) * (4 if name == 'attention' else 2.5)
          reasons[name, use] = f'about {expected:.0f} s a call' if expected > budget else ''
        if not reasons[name, use]:
          try:
            made[name, use] = _operator(mixer, width, length, use)
          except (jax.errors.JaxRuntimeError, MemoryError) as error:
            reasons[name, use] = f'memory: {str(error).splitlines()[0][:60]}'
    taken = bench.in_turns({key: action for key, (action, _) in made.items() if not reasons[key]}, repeats, pause=0.2, failed=reasons)
    last |= {key: value for key, value in taken.items() if value == value}
    for name in mixers:
      row = dict(part='operator', name=name, length=length)
      for use in ('forward', 'both'):
        row |= {f'{use}_s': taken.get((name, use), math.nan), f'{use}_MiB': made[name, use][1]}
      rows.append(row | dict(left_out='; '.join(f'{use}: {why}' for (which, use), why in reasons.items() if which == name and why)))
    print(f'operator {length}', file=sys.stderr, flush=True)
  return rows


def _operator(mixer, width: int, length: int, use: str) -> tuple[Callable[[], Any], float]:
  params = init(jax.random.key(0), mixer.params(width))
  x = jax.random.normal(jax.random.key(1), (1, length, width))
  forward = lambda params, x: mixer.apply(params, x)[0]
  action = forward if use == 'forward' else jax.grad(lambda params, x: jnp.mean(forward(params, x) ** 2), argnums=(0, 1))
  compiled = jax.jit(action).lower(params, x).compile()
  return lambda: compiled(params, x), compiled.memory_analysis().temp_size_in_bytes / 2 ** 20


def crossover(rows: Sequence[bench.Row], use: str) -> str:
  """Where Hyena's line crosses attention's, between measured lengths by powers of the length."""
  time_of = lambda name: {row['length']: row[f'{use}_s'] for row in rows if row['name'] == name and row[f'{use}_s'] == row[f'{use}_s']}
  ours, theirs = time_of('Hyena'), time_of('attention')
  both = sorted(set(ours) & set(theirs))
  gains = [math.log(theirs[n] / ours[n]) for n in both]
  if not gains or gains[-1] <= 0:
    return f'not below {max(both, default=0)} tokens'
  behind = max((i for i, gain in enumerate(gains) if gain <= 0), default=None)
  if behind is None:
    return f'below {both[0]} tokens'
  share = -gains[behind] / (gains[behind + 1] - gains[behind])
  return f'{both[behind] * (both[behind + 1] / both[behind]) ** share:.0f} tokens'


def generation(lengths: Sequence[int], channels: int, modes: int, budget: float) -> list[bench.Row]:
  """One row per form and length: seconds for all of `length` tokens of one sequence, one at a time, of one convolution with `length` taps.

  distilled: a ModalFilter of `modes` modes, whatever it stands for.  A form's tokens are timed until the budget is spent; where `timed` is less than
  the length, `total_s` is the mean token's time times the length (direct: every token costs the same).
  """
  rows = []
  for length in lengths:
    for form in (*FORMS, 'distilled'):
      made = ModalFilter(modes=modes) if form == 'distilled' else ExplicitFilter(l_max=length, form=form)
      taken, timed = _generate(made, channels, length, budget)
      rows.append(dict(part='generation', name=form, length=length, total_s=taken / timed * length, us_per_token=1e6 * taken / timed, timed=timed))
    print(f'generation {length}', file=sys.stderr, flush=True)
  return rows


def _generate(made, channels: int, length: int, budget: float) -> tuple[float, int]:
  """(seconds, tokens)."""
  params = init(jax.random.key(0), made.params(channels))
  chunk = min(CHUNK, length)

  def step(kernel):
    def one(state, u):
      y, state = made.convolve(kernel, u[None, None], state)
      return state, y[0, 0]
    return one
  read = jax.jit(lambda kernel, state, u: jax.lax.scan(step(kernel), state, u), donate_argnums=1)
  kernel = jax.jit(lambda params: made.kernel(params, 1, made.init_state(channels, 1, length)))(params)
  fresh = lambda: jax.tree.map(jnp.array, made.init_state(channels, 1, length))
  u = jax.random.normal(jax.random.key(1), (chunk, channels))
  jax.block_until_ready(read(kernel, fresh(), u))
  state, timed, begin = jax.block_until_ready(fresh()), 0, time.perf_counter()
  while timed < length and time.perf_counter() - begin < budget:
    state, _ = jax.block_until_ready(read(kernel, state, u))
    timed += chunk
  return time.perf_counter() - begin, timed


def against_torch(lengths: Sequence[int], width: int, batch: int, repeats: int) -> list[bench.Row]:
  """Two rows per length: seconds forward and backward, with the gradients of input and weights, here and in PyTorch by rfft and irfft of 2 length.

  convolution: the FFT convolution with skip and gate, on [batch, width, length] there and [batch, length, width] here, as each side's operators
  have it inside.  operator: Hyena of order 2 on [batch, length, width], with an explicit filter as long as the input, the same weights in both.
  difference: the largest of a gradient's entries over the gradient's largest.
  """
  import torch
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  rows = []
  for length in lengths:
    for name, pair in (('convolution', _convolutions), ('operator', _operators)):
      theirs, ours = pair(length, width, batch)
      difference = max(float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()) for a, b in zip(ours(), theirs()))
      taken = bench.in_turns(dict(theirs=theirs, ours=ours), repeats, pause=0.2)            # PyTorch's threads spin for a while
      rows.append(dict(part='torch', name=name, length=length, batch=batch, theirs_s=taken['theirs'], ours_s=taken['ours'],
                       ratio=taken['theirs'] / taken['ours'], difference=difference))
      print(f"torch, {name} {length}: {rows[-1]['ratio']:.2f}", file=sys.stderr, flush=True)
  return rows


def _fft_convolution(u, h):
  """PyTorch's way: u [batch, width, length], h [width, length]."""
  import torch
  length = u.shape[-1]
  return torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(h, n=2 * length), n=2 * length)[..., :length]


def _convolutions(length: int, width: int, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
  """(there, here): the gradients by h and the skip; those by u and the gate are computed as well."""
  import torch
  random = np.random.default_rng(0)
  u, gate = random.normal(size=(2, batch, length, width)).astype(np.float32)
  h, skip = random.normal(size=(length, width)).astype(np.float32) / length, random.normal(size=width).astype(np.float32)
  theirs = [torch.from_numpy(np.ascontiguousarray(a)).requires_grad_() for a in (h.T, skip[:, None], u.swapaxes(1, 2), gate.swapaxes(1, 2))]

  def there():
    h, skip, u, gate = theirs
    found = torch.autograd.grad(((_fft_convolution(u, h) + skip * u) * gate).square().mean(), theirs)
    return found[0].numpy().T, found[1].numpy()[:, 0]
  gradient = jax.jit(jax.grad(lambda h, skip, u, gate: jnp.mean(((causal_convolution(u, h) + skip * u) * gate) ** 2), argnums=(0, 1, 2, 3)))
  ours = [jnp.asarray(a) for a in (h, skip, u, gate)]
  return there, lambda: gradient(*ours)


def _operators(length: int, width: int, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
  """(there, here): the gradients by x and the filter; those by all weights are computed as well."""
  import torch
  mixer = Hyena(ExplicitFilter(l_max=length, threshold=0.0))
  params = init(jax.random.key(0), mixer.params(width))
  x = jax.random.normal(jax.random.key(1), (batch, length, width))
  fused = lambda name: np.concatenate([np.asarray(params[f'{name}_{part}']) for part in ('g0', 'g1', 'v')], axis=-1)
  arrays = (x, np.asarray(params['filter']['k']).T, fused('w'), fused('b'), fused('conv').T[:, None], fused('b_conv'), params['skip'][:, None],
            params['w_out'], params['b_out'])
  theirs = [torch.from_numpy(np.array(a, order='C')).requires_grad_() for a in arrays]

  def there():
    x, h, w, b, conv, b_conv, skip, w_out, b_out = theirs
    z = torch.nn.functional.conv1d((x @ w + b).transpose(1, 2), conv, b_conv, padding=2, groups=3 * width)[..., :length]
    g0, g1, v = z.chunk(3, dim=1)
    v = g1 * v
    y = (g0 * (_fft_convolution(v, h) + skip * v)).transpose(1, 2) @ w_out + b_out
    found = torch.autograd.grad(y.square().mean(), theirs)
    return found[0].numpy(), found[1].numpy().T
  gradient = jax.jit(jax.grad(lambda params, x: jnp.mean(mixer.apply(params, x)[0] ** 2), argnums=(0, 1)))

  def here():
    of_params, of_x = jax.block_until_ready(gradient(params, x))
    return of_x, of_params['filter']['k']
  return there, here


def plot(rows: Sequence[bench.Row], path: pathlib.Path, said: str) -> None:
  """Seconds and memory of the operators, and microseconds per generated token, against length."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  figure = Figure(figsize=(15, 4.6), layout='constrained')
  FigureCanvasAgg(figure)
  figure.suptitle(said, fontsize=11)
  panels = (('operator', (('forward_s', '-'), ('both_s', '--')), 'seconds', 'batch 1; forward (full), with gradient (dashed)'),
            ('operator', (('forward_MiB', '-'), ('both_MiB', '--')), 'MiB', 'temporary memory, compiled'),
            ('generation', (('us_per_token', '-'),), 'microseconds per token', 'generation, one convolution'))
  for axes, (part, columns, unit, title) in zip(figure.subplots(1, 3), panels):
    of = [row for row in rows if row['part'] == part]
    for index, name in enumerate(dict.fromkeys(row['name'] for row in of)):
      for column, style in columns:
        points = [(row['length'], row[column]) for row in of if row['name'] == name]
        axes.plot(*zip(*points), style, color=f'C{index}', marker='.', label=name if style == '-' else None)
    axes.set(yscale='log', xlabel='length, tokens', ylabel=unit)
    axes.set_title(title, fontsize=10)
    axes.set_xscale('log', base=2)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
  figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(prog='ssmlab bench longconv', description=__doc__)
  parser.add_argument('--lengths', type=int, nargs='+', default=[1024, 2048, 4096, 8192, 16384, 32768, 65536], help='default %(default)s')
  for name, default, text in (('width', 64, 'channels'), ('modes', 16, 'of the distilled filter'), ('batch', 4, 'sequences, beside PyTorch'),
                              ('repeats', 3, 'calls of which the fastest counts'), ('budget', 12, 'seconds after which a point is left out, or generation is measured on fewer tokens')):
    parser.add_argument(f'--{name}', type=int, default=default, help=f'{text} (default %(default)s)')
  parser.add_argument('-o', '--output', type=pathlib.Path, default=pathlib.Path('runs/bench_longconv'),
                      help='folder for a .csv and .json per part, and longconv.png (default %(default)s)')
  options = parser.parse_args(argv)
  lengths = sorted(options.lengths)
  parts = dict(operator=against_attention(lengths, options.width, options.repeats, options.budget),
               generation=generation(lengths, options.width, options.modes, options.budget))
  if importlib.util.find_spec('torch'):
    parts['torch'] = against_torch([n for n in lengths if n <= 16384], options.width, options.batch, options.repeats)
  for name, rows in parts.items():
    print(bench.table(rows) + '\n')
    for suffix in ('csv', 'json'):
      bench.write(options.output / f'{name}.{suffix}', rows)
  where = f'{jax.device_count()} x {jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores'
  said = ', '.join(f'{text} from {crossover(parts["operator"], use)}' for use, text in (('forward', 'forward'), ('both', 'with the gradient')))
  said = f'Hyena is faster than attention: {said}'
  print(f'{said}; width {options.width}, {where}')
  if 'torch' not in parts:
    print("no PyTorch here (pip install 'ssmlab[peers]'): that part is left out")
  plot([row for rows in parts.values() for row in rows], options.output / 'longconv.png', said)
  print(f'written to {options.output}')


if __name__ == '__main__':
  main()
