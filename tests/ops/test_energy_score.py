"""The energy score against a sum over all pairs in float64, its gradient where samples coincide, its memory, and that it is proper."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.ops.energy_score import energy_score

MIB = 2 ** 20


def draws(key: int, *shape: int) -> np.ndarray:
  return np.random.default_rng(key).normal(size=shape).astype(np.float32)


def score(x, y, alpha: float = 1.0):
  fidelity, diversity = energy_score(x, lambda m: jnp.asarray(y)[m], len(y), alpha)
  return fidelity - diversity


@pytest.mark.parametrize('alpha', [0.5, 1.0, 1.5])
def test_is_the_sum_over_all_pairs(alpha):
  x, y = draws(0, 4, 3, 5), draws(1, 7, 3, 5)
  power = lambda a, b: np.linalg.norm(a.astype(np.float64) - b, axis=-1) ** alpha
  near = 2 * np.mean([power(a, b) for a, b in itertools.product(x, y)], axis=0)
  apart = sum(power(x[n], x[k]) for n, k in itertools.product(range(4), repeat=2) if n != k) / (4 * 3)
  fidelity, diversity = energy_score(x, lambda m: jnp.asarray(y)[m], 7, alpha)
  np.testing.assert_allclose(fidelity, near, rtol=1e-5)
  np.testing.assert_allclose(diversity, apart, rtol=1e-5)


@pytest.mark.parametrize('alpha', [0.5, 1.0, 1.5])
def test_gradients_are_finite_where_everything_coincides(alpha):
  """As at the first step, when the head's last map is zero; samples that lie on a target too."""
  y = np.concatenate([np.zeros((1, 2, 5), np.float32), draws(1, 6, 2, 5)])
  gradient = jax.grad(lambda x: jnp.sum(score(x, y, alpha)))(jnp.zeros((4, 2, 5)))
  assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_moved_together_nothing_changes_and_scaled_it_scales():
  x, y = draws(0, 4, 3, 5), draws(1, 7, 3, 5)
  one = score(x, y, 1.5)
  np.testing.assert_allclose(score(x + 2.5, y + 2.5, 1.5), one, rtol=1e-4)
  np.testing.assert_allclose(score(-3 * x, -3 * y, 1.5), 3 ** 1.5 * one, rtol=1e-4)
  np.testing.assert_allclose(score(x[::-1], y[::-1], 1.5), one, rtol=1e-5)


def test_is_least_for_the_target_itself_and_not_for_its_mean():
  """Targets N(0, 1) in 2 dimensions; means over 4000 positions, of which the standard error is below 0.01."""
  y, x = draws(0, 8, 4000, 2), draws(1, 8, 4000, 2)
  at = lambda mean, std: float(jnp.mean(score(mean + std * x, y)))
  best = at(0.0, 1.0)
  assert all(at(mean, std) > best + 0.02 for mean, std in ((0.0, 0.0), (0.0, 0.5), (0.0, 1.6), (0.5, 1.0)))


def test_memory_at_the_papers_sizes():
  """N 8, M 100, 4 rows of 2047 positions, l 128: all differences at once would be 3.4 GB, and as much again in the backward pass."""
  def loss(x, mean, log_std, key):
    target = lambda m: mean + jnp.exp(log_std) * jax.random.normal(jax.random.fold_in(key, m), mean.shape)
    fidelity, diversity = energy_score(x, target, 100)
    return jnp.mean(fidelity - diversity)
  array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  compiled = jax.jit(jax.value_and_grad(loss)).lower(array(8, 4, 2047, 128), array(4, 2047, 128), array(4, 2047, 128), key).compile()
  memory = compiled.memory_analysis()
  peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
  assert peak < 400 * MIB, f'{peak / MIB:.0f} MiB'


@pytest.mark.parametrize('alpha', [0.0, 2.0, -1.0])
def test_what_is_not_proper_is_refused(alpha):
  with pytest.raises(ValueError, match='above 0 and below 2'):
    score(draws(0, 2, 3), draws(1, 2, 3), alpha)


def test_one_sample_is_refused():
  with pytest.raises(ValueError, match='at least 2 samples'):
    score(draws(0, 1, 3), draws(1, 2, 3))
