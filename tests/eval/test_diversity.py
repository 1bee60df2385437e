"""The collapse measures on matrices whose spectrum is known, PanGu-pi's bounds, and the table of a model."""

import jax
import numpy as np
import pytest

from ssmlab.core.params import init
from ssmlab.eval.diversity import (
  Moments,
  by_depth,
  effective_dimension,
  plot,
  projection_distance,
  rank_one_residual,
)
from ssmlab.layers.channel import MLP, GatedMLP
from ssmlab.mixers.mingru import MinGRU
from ssmlab.models import LM

RANDOM = np.random.default_rng(0)


def known(singular, tokens=200, width=12):
  """[tokens, width] with zero mean and these singular values."""
  centred = RANDOM.normal(size=(tokens, len(singular)))
  left = np.linalg.qr(centred - centred.mean(axis=0))[0]
  return left @ np.diag(singular) @ np.linalg.qr(RANDOM.normal(size=(width, len(singular))))[0].T


@pytest.mark.parametrize('singular, share, dimension', [([1, 1, 1, 1], 0.8, 4), ([1, 1, 1, 1], 0.7, 3), ([10, 1, 1], 0.8, 1), ([2, 1, 1], 0.8, 2)])
def test_effective_dimension_of_a_known_spectrum(singular, share, dimension):
  x = known(singular) + 7.0                                  # the mean does not count
  assert effective_dimension(x, share) == dimension
  moments = Moments()
  for part in np.split(x, 4):
    moments.add(part)
  measured = moments.measures(share)
  assert measured['effective_dimension'] == dimension and measured['rank'] == len(singular)
  np.testing.assert_allclose(np.sqrt(moments.spectrum()[:len(singular)]), singular, rtol=1e-6)


def test_distances():
  x = known([3, 4])
  np.testing.assert_allclose(projection_distance(x + 5.0), 5.0, rtol=1e-9)
  same = np.tile(RANDOM.normal(size=(1, 12)), (9, 1))
  assert projection_distance(same) < 1e-12 and rank_one_residual(same) < 1e-12
  assert abs(rank_one_residual(x - x.mean(axis=0)) - 1) < 1e-12


def test_the_paper_s_bounds_hold():
  """Theorems of section 3: d(MSA(Z)) <= sqrt(lambda heads) s v d(Z) for one head; d(MLP(Z)) <= L s v d(Z), with the Lipschitz constant of GELU."""
  z = RANDOM.normal(size=(20, 12))
  a = np.exp(RANDOM.normal(size=(20, 20)))
  a /= a.sum(axis=1, keepdims=True)
  centre = np.eye(20) - np.full((20, 20), 1 / 20)
  w, largest = RANDOM.normal(size=(12, 12)), lambda m: np.linalg.norm(m, 2)
  assert projection_distance(a @ z @ w) <= np.sqrt(largest(a.T @ centre @ a)) * largest(w) * projection_distance(z)
  mlp = MLP(16, bias=False)
  params = init(jax.random.key(0), mlp.params(12))
  bound = 1.13 * largest(params['w_up']) * largest(params['w_down']) * projection_distance(z)
  assert projection_distance(np.asarray(mlp.apply(params, np.float32(z)[None])[0][0])) <= bound


def test_table_and_plot_of_a_model(tmp_path):
  model = LM(vocab=32, width=8, pattern=(MinGRU(expand=1.0),), depth=3, channel=GatedMLP(16))
  params = init(jax.random.key(0), model.params())
  tokens = RANDOM.integers(0, 32, (4, 24), dtype=np.int32)
  ids = np.ones((4, 24), np.int32)
  ids[3, 10:] = 0
  rows = by_depth(model, params, [dict(tokens=tokens, segment_ids=ids)] * 2, skip=2)
  assert [row['layer'] for row in rows] == ['embedding', *(f'block {i} (MinGRU)' for i in range(3))]
  assert all(1 <= row['effective_dimension'] <= row['rank'] <= 8 and 0 < row['relative_distance'] <= 1 for row in rows)
  top = np.asarray(dict(model.walk(params, tokens, ids))['block 2 (MinGRU)'])
  x = np.concatenate([top[i, 2:24 if i < 3 else 10] for i in range(4)])
  assert rows[-1]['effective_dimension'] == effective_dimension(x)
  plot(dict(ours=rows), tmp_path / 'd.png')
  assert (tmp_path / 'd.png').read_bytes().startswith(b'\x89PNG')
  with pytest.raises(ValueError, match='tokens are too few to tell the dimension of 8 channels'):
    by_depth(model, params, [dict(tokens=tokens[:1, :8], segment_ids=ids[:1, :8])])
