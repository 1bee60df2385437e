"""The courses of the learning rate."""

import numpy as np
import pytest

from ssmlab.train.optimizer import DECAYS, Schedule


@pytest.mark.parametrize('decay', DECAYS)
def test_warm_up_hold_and_end(decay):
  """The first step has peak / warm-up steps; the peak is held; the last step has the end rate (constant: the peak)."""
  rate = Schedule(peak_lr=2.0, warmup_steps=4, decay=decay, end_ratio=0.1, hold_steps=6).schedule(50)
  rates = np.array([rate(step) for step in range(50)])
  np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
  np.testing.assert_allclose(rates[4:10], 2.0, rtol=1e-6)
  np.testing.assert_allclose(rates[-1], 2.0 if decay == 'constant' else 0.2, rtol=1e-5)
  assert (np.diff(rates[10:]) <= 1e-6).all()


def test_exponential_is_one_factor_per_step():
  rate = Schedule(peak_lr=6e-4, warmup_steps=1, decay='exponential', end_ratio=1e-5 / 6e-4, hold_steps=9).schedule(110)
  rates = np.array([rate(step) for step in range(110)])
  np.testing.assert_allclose(rates[10:] / rates[9:-1], (1e-5 / 6e-4) ** 0.01, rtol=1e-5)


def test_what_does_not_fit_is_named():
  with pytest.raises(ValueError, match="decay='steps' is not one of cosine, linear, exponential, constant, stable"):
    Schedule(decay='steps')
  with pytest.raises(ValueError, match='end_ratio=0.0 must be above 0'):
    Schedule(decay='exponential', end_ratio=0.0)
