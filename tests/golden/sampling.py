"""Golden files of what is computed from samples alone: CALM's BrierLM and its temperature.  No parameters, no gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.eval import brier, temperature
from tests.golden.compare import Errors, Golden

SYSTEMS = ('calm-brierlm', 'calm-temperature')


class SamplingRun:
  """One file."""

  def __init__(self, golden: Golden):
    self.golden, self.errors = golden, Errors(golden)

  def check(self) -> Errors:
    if self.golden.meta['system'] == 'calm-brierlm':
      for name in sorted({key.split('/')[1] for key in self.golden.tensors}):
        self.markov(name) if name.startswith('markov') else self.chunks(name)
    else:
      self.temperature()
    left = self.golden.left()
    assert not left, f'{self.golden.name}: nothing looked at {", ".join(left)}'
    return self.errors

  def score(self, key: str, mine, suffix: str = '') -> None:
    self.errors.output(f'{key}/brier_n{suffix}', mine, self.golden.take(f'{key}/brier_n{suffix}'))
    self.errors.output(f'{key}/brierlm{suffix}', brier.brierlm(mine), self.golden.take(f'{key}/brierlm{suffix}'))

  def chunks(self, name: str) -> None:
    """Drawn chunks; for K < 4 the authors leave out the last window."""
    truth, first, second, *onward = (self.golden.tokens(f'in/{name}/{part}') for part in ('targets', 'x1', 'x2', 'rollout1', 'rollout2'))
    if truth.shape[-1] < brier.N:                            # nor do their roll-outs go on from there
      onward = [np.pad(part, ((0, 0), (0, 1), (0, 0), (0, 0)), constant_values=-1) for part in onward]
    found = brier.estimate(brier.chunk_windows(truth, first, second, onward))
    if truth.shape[-1] < brier.N:
      found = found[:, :-1]
    self.score(f'out/{name}', np.asarray(found, np.float64).mean(axis=(0, 1)))

  def markov(self, name: str) -> None:
    """The two-sample estimate of every pair of 4-grams, weighed by the pair's probability, after every token."""
    tokens, law = self.golden.tokens(f'in/{name}/tokens'), self.golden.take(f'in/{name}/transition')
    grams = np.array(list(itertools.product(range(len(law)), repeat=brier.N)), np.int32)
    mean = jax.jit(lambda truth, p: jnp.einsum('x,xyn,y->n', p, brier.estimate(brier.Windows(truth, grams[:, None], grams[None])).astype(p.dtype), p))
    means = []
    for at in range(len(tokens) - brier.N):
      path = np.concatenate([np.full((len(grams), 1), tokens[at]), grams], axis=1)
      p = np.prod(law[path[:, :-1], path[:, 1:]], axis=1)
      means.append(np.asarray(mean(tokens[at + 1:at + 1 + brier.N], jnp.asarray(p, jnp.float32)), np.float64))
    self.score(f'out/{name}', np.mean(means, axis=0), '_exact')

  def temperature(self) -> None:
    golden, p = self.golden, self.golden.take('in/probs')
    temperatures = [float(t) for t in golden.take('in/temperatures')]
    for key, mine in (('target_distribution', temperature.target), ('accept_probability_per_round', temperature.acceptance),
                      ('expected_draws', temperature.expected_draws)):
      self.errors.output(f'out/{key}', np.array([mine(p, t) for t in temperatures]), golden.take(f'out/{key}'))
    laws = np.array([batch_law(p, int(n), int(size)) for n, size in golden.take('in/batch_n_N')])
    self.errors.output('out/batch_output_distribution', laws, golden.take('out/batch_output_distribution'))
    pool, unique = golden.tokens('in/pool'), golden.tokens('out/pool_unique')
    same = np.all(pool[:, None] == unique[None], axis=-1)
    laws = np.array([np.asarray(jax.nn.softmax(temperature.counting_logits(jnp.asarray(pool), int(n)))) @ same for n in golden.take('in/pool_n')])
    self.errors.output('out/pool_selection_probability', laws, golden.take('out/pool_selection_probability'))
    self.drawn(p, temperatures)

  def drawn(self, p: np.ndarray, temperatures: list[float], count: int = 4000) -> None:
    """Frequencies and draws of the exact sampler, within 5 standard errors of the file's numbers: 2e-5 of seeds would fail."""
    edges, target, draws = jnp.asarray(np.cumsum(p)[:-1], jnp.float32), self.golden.take('out/target_distribution'), self.golden.take('out/expected_draws')
    draw = lambda key: jnp.sum(jax.random.uniform(key) >= edges)
    for row, t in enumerate(temperatures):
      keys = jax.random.split(jax.random.key(row), count)
      found, used = map(np.asarray, jax.jit(jax.vmap(lambda key: temperature.exact(draw, key, t)))(keys))
      share = np.bincount(found, minlength=len(p)) / count
      assert np.all(np.abs(share - target[row]) <= 5 * np.sqrt(target[row] * (1 - target[row]) / count)), f'temperature {t}: {share}, golden {target[row]}'
      assert abs(used.mean() - draws[row]) <= 5 * used.std() / np.sqrt(count), f'temperature {t}: {used.mean()} draws, golden {draws[row]}'


def batch_law(p: np.ndarray, n: int, size: int) -> np.ndarray:
  """The law of temperature.counting over `size` draws: its choice for every vector of counts, weighed by the vector's probability."""
  bars = np.array(list(itertools.combinations(range(size + len(p) - 1), len(p) - 1)))
  counts = np.diff(np.pad(bars, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, size + len(p) - 1)))) - 1
  factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size + 1)))])
  weight = np.exp(factorial[size] - factorial[counts].sum(axis=1) + counts @ np.log(p))
  return weight @ np.asarray(_choices(jnp.asarray(counts), n, size), np.float64)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _choices(counts: jax.Array, n: int, size: int) -> jax.Array:
  def one(counts):
    outcomes = jnp.repeat(jnp.arange(len(counts)), counts, total_repeat_length=size)
    return jax.nn.softmax(temperature.counting_logits(outcomes, n)) @ jax.nn.one_hot(outcomes, len(counts))
  return jax.lax.map(one, counts, batch_size=1024)
