"""Samplers at a temperature against P^(1/T) / Z.

Chi-square tests at a fixed seed.  Each would raise a false alarm with probability 1e-4 for a seed drawn anew: about 1e-3 for the whole file.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ssmlab.eval import temperature as T

FALSE_ALARM = 1e-4
LAW = np.array([0.15, 0.44, 0.28, 0.05, 0.08])


def drawer(law):
  """key -> an outcome 0, 1, ... of the law."""
  edges = jnp.asarray(np.cumsum(law)[:-1], jnp.float32)
  return lambda key: jnp.sum(jax.random.uniform(key) >= edges, dtype=jnp.int32)


def chunk(key):
  """The law's outcome, written as a chunk of three tokens."""
  x = drawer(LAW)(key)
  return jnp.stack([x % 2, x // 2, 7 * jnp.ones_like(x)])


def p_value(outcomes, law):
  return stats.chisquare(np.bincount(outcomes, minlength=len(law)), len(outcomes) * law).pvalue


@functools.cache
def drawn(temperature, count=6000):
  """(outcomes, draws used) of the exact sampler."""
  keys = jax.random.split(jax.random.key(int(1000 * temperature)), count)
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda key: T.exact(drawer(LAW), key, temperature)))(keys))


@pytest.mark.parametrize('temperature', [1.0, 0.8, 0.6, 0.5, 0.4, 1 / 3, 0.25])
def test_the_exact_sampler_has_the_law(temperature):
  outcomes, draws = drawn(temperature)
  assert p_value(outcomes, T.target(LAW, temperature)) > FALSE_ALARM
  assert abs(draws.mean() - T.expected_draws(LAW, temperature)) <= 4 * draws.std() / np.sqrt(len(draws))     # 4 standard errors: 6e-5


def test_the_test_tells_laws_apart():
  outcomes, _ = drawn(0.5)
  assert p_value(outcomes, T.target(LAW, 0.45)) < FALSE_ALARM and p_value(outcomes, LAW) < FALSE_ALARM


def test_an_outcome_may_be_a_chunk():
  outcomes, _ = jax.jit(jax.vmap(lambda key: T.exact(chunk, key, 0.6)))(jax.random.split(jax.random.key(5), 5000))
  assert outcomes.shape == (5000, 3) and np.all(outcomes[:, 2] == 7)
  assert p_value(np.asarray(2 * outcomes[:, 1] + outcomes[:, 0]), T.target(LAW, 0.6)) > FALSE_ALARM


@pytest.mark.parametrize('a', [0.2, 0.75])
def test_the_bernoulli_factory(a):
  """Accepts outcome 0 with probability p^a, after p^(a-1) draws on average."""
  keys = jax.random.split(jax.random.key(3), 8000)
  hit, draws = jax.jit(jax.vmap(lambda key: T.bernoulli_factory(drawer(LAW), key, jnp.int32(0), a)))(keys)
  p = LAW[0]
  assert abs(float(hit.mean()) - p ** a) < 4 * np.sqrt(p ** a * (1 - p ** a) / len(keys))
  assert abs(float(draws.mean()) - p ** (a - 1)) < 4 * float(draws.std()) / np.sqrt(len(keys))


def test_counting_weights_by_hand():
  """Counts 3, 2, 1: n = 2 -> binom 3, 1, 0 over the outcomes; n = 5 falls back to m = 3; n = 1 is a plain draw."""
  outcomes = jnp.array([[1, 1], [2, 2], [1, 1], [3, 3], [2, 2], [1, 1]])
  law = lambda n: np.asarray(jax.nn.softmax(T.counting_logits(outcomes, n)))
  np.testing.assert_allclose(law(2), np.array([3 / 3, 1 / 2, 3 / 3, 0, 1 / 2, 3 / 3]) / 4, rtol=1e-6)
  np.testing.assert_allclose(law(5), np.array([1, 0, 1, 0, 0, 1]) / 3, rtol=1e-6)
  np.testing.assert_allclose(law(1), np.full(6, 1 / 6), rtol=1e-6)
  taken = jax.vmap(lambda key: T.counting(outcomes, key, 2))(jax.random.split(jax.random.key(0), 4000))
  assert p_value(np.asarray(taken[:, 0]) - 1, np.array([0.75, 0.25, 0])[:2]) > FALSE_ALARM


def test_counting_comes_close_with_many_draws():
  """At N = 500 the law is within 0.005 of the target; at N = 10 it is not."""
  def law(size):
    keys = jax.random.split(jax.random.key(1), 400)
    one = lambda key: jax.nn.one_hot(x := jax.vmap(drawer(LAW))(jax.random.split(key, size)), 5).T @ jax.nn.softmax(T.counting_logits(x, 2))
    return np.asarray(jnp.mean(jax.lax.map(one, keys), axis=0))
  far = lambda size: np.abs(law(size) - T.target(LAW, 0.5)).max()
  assert far(500) < 0.005 < far(10)


def test_estimated_draws():
  rng = np.random.default_rng(0)
  assert T.estimated_draws(np.array([1, 1, 2, 2]), 2) == pytest.approx(2 * 6 / 2) and T.estimated_draws(np.arange(4), 2) == np.inf
  share = [2 / T.estimated_draws(rng.choice(5, 12, p=LAW), 2) for _ in range(4000)]
  assert abs(np.mean(share) - T.acceptance(LAW, 0.5)) < 4 * np.std(share) / np.sqrt(4000)


@pytest.mark.parametrize('temperature, n, a', [(1.0, 1, 0), (1 / 3, 3, 0), (0.1, 10, 0), (0.4, 2, 0.5), (0.9, 1, 1 / 9)])
def test_powers(temperature, n, a):
  assert T.powers(temperature) == (n, pytest.approx(a, abs=1e-12))


class Coin:
  """A model whose chunk is two copies of an outcome of the law, shifted by x."""

  def draw(self, params, x, key):
    outcomes = jax.random.categorical(key, jnp.log(jnp.asarray(LAW, jnp.float32)), shape=x.shape[:-1])
    return (outcomes + x[..., 0].astype(jnp.int32))[..., None] * jnp.ones(2, jnp.int32)


@pytest.mark.parametrize('temperature, samples', [(1.0, 200), (0.5, 0), (0.6, 0), (0.5, 400)])
def test_chunks_of_a_batch(temperature, samples):
  """Every row has its own law; with 400 draws the counting sampler is near enough to pass."""
  x = jnp.repeat(jnp.array([[0.0], [10.0]]), 1000, axis=0)
  drawn = np.asarray(jax.jit(lambda key: T.Chunks(temperature, samples)(Coin(), {}, x, key))(jax.random.key(7)))
  assert drawn.shape == (2000, 2) and np.all(drawn[:, 0] == drawn[:, 1])
  for row, base in ((drawn[:1000, 0], 0), (drawn[1000:, 0], 10)):
    assert p_value(row - base, T.target(LAW, temperature)) > FALSE_ALARM


class Reader(Coin):
  """The same, reading whatever text there is."""
  chunk = 2

  def hidden(self, params, tokens, state, segment_ids):
    return jnp.zeros((*tokens[:, ::2].shape, 1)), state


def test_draws_of_a_trained_model():
  """Of 400 samples at 40 places: the mean over places of what the exact sampler needs is the law's own, within a tenth; rare repeats are unknown."""
  batch = dict(tokens=np.zeros((2, 60), np.int32), segment_ids=np.ones((2, 60), np.int32))
  rows = T.draws(Reader(), {}, [batch], samples=400, contexts=40, most=3)
  assert [row['temperature'] for row in rows] == [1 / 2, 1 / 3]
  for row in rows:
    assert row['unknown'] == 0 and row['mean'] == pytest.approx(T.expected_draws(LAW, row['temperature']), rel=0.1)
  few = T.draws(Reader(), {}, [batch], samples=4, contexts=40, most=4)[-1]
  assert 0.5 < few['unknown'] <= 1


def test_what_is_refused():
  with pytest.raises(ValueError, match='temperature=0.6 with samples=200 must be 1/n'):
    T.Chunks(0.6)
  for wrong in (0, -0.5, 1.5):
    with pytest.raises(ValueError, match='must be above 0 and at most 1'):
      T.exact(drawer(LAW), jax.random.key(0), wrong)
  with pytest.raises(ValueError, match='n=0 must be at least 1'):
    T.counting(jnp.arange(3), jax.random.key(0), 0)
