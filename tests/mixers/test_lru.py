"""The LRU against the paper's equations in numpy float64, and the ring that its eigenvalues start in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.dtypes import cast
from ssmlab.core.params import hints, init
from ssmlab.mixers.lru import LRU

WIDTH, BATCH, TIME = 5, 2, 40


def by_steps(p, x):
  """Appendix A of the paper as a loop, then GELU (tanh form) and GLU."""
  nu, theta, log_gamma = p['ring']
  eigenvalues = np.exp(-np.exp(nu) + 1j * np.exp(theta))
  b, c = p['w_b'][0] + 1j * p['w_b'][1], p['w_c'][0] + 1j * p['w_c'][1]
  h, out = np.zeros((BATCH, len(nu)), complex), []
  for t in range(x.shape[1]):
    h = eigenvalues * h + np.exp(log_gamma) * (x[:, t] @ b)
    out.append((h @ c).real + p['d'] * x[:, t])
  y = np.stack(out, axis=1)
  y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y ** 3)))
  return (y @ p['w_out'] + p['b_out']) / (1 + np.exp(-(y @ p['w_gate'] + p['b_gate']))), h


@pytest.mark.parametrize('precision, tolerance', (('float64', 1e-11), ('float32', 3e-5)))
def test_definition(precision, tolerance):
  mixer = LRU(state=12, r_min=0.5, r_max=0.99)
  random = np.random.default_rng(1)
  p = {name: np.asarray(v, np.float64) + 0.2 * random.normal(size=v.shape) for name, v in init(jax.random.key(0), mixer.params(WIDTH)).items()}
  x = random.normal(size=(BATCH, TIME, WIDTH))
  expected, last = by_steps(p, x)
  with jax.enable_x64(precision == 'float64'):
    p, x = jax.tree.map(lambda v: jnp.asarray(v, precision), (p, x))
    y, none = jax.jit(mixer.apply)(p, x)
    y_state, state = jax.jit(mixer.apply)(p, x, mixer.init_state(WIDTH, BATCH, TIME))
  assert none is None and y.dtype == precision
  for result in (y, y_state):
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * np.abs(expected).max())
  np.testing.assert_allclose(np.asarray(state['real']) + 1j * np.asarray(state['imaginary']), last, rtol=0, atol=tolerance * np.abs(last).max())


@pytest.mark.parametrize('r_min, r_max, max_phase', ((0.0, 1.0, 6.28), (0.9, 0.999, 6.28), (0.999, 0.9999, 0.314)))
def test_start(r_min, r_max, max_phase):
  mixer = LRU(state=4000, r_min=r_min, r_max=r_max, max_phase=max_phase)
  declared = mixer.params(16)
  params = init(jax.random.key(0), declared)
  nu, theta, log_gamma = np.asarray(params['ring'], np.float64)
  radius, phase = np.exp(-np.exp(nu)), np.exp(theta)
  assert r_min - 1e-6 <= radius.min() and radius.max() <= r_max + 1e-6 and 0 < phase.min() and phase.max() <= max_phase * (1 + 1e-6)
  share = (radius ** 2 - r_min ** 2) / (r_max ** 2 - r_min ** 2)                       # uniform in the ring's area
  for values in (share, phase / max_phase):
    np.testing.assert_allclose(np.quantile(values, (0.25, 0.5, 0.75)), (0.25, 0.5, 0.75), atol=0.03)
  assert abs(np.corrcoef(share, phase)[0, 1]) < 0.05
  np.testing.assert_allclose(np.exp(log_gamma), np.sqrt(1 - radius ** 2), rtol=1e-4)
  assert abs(np.square(params['w_b']).mean() * 2 * 16 - 1) < 0.03 and abs(np.square(params['w_c']).mean() * 4000 - 1) < 0.03
  assert {name for name, rate in hints(declared, 'rate').items() if rate < 1} == {'ring', 'w_b'}
  assert {name for name, decays in hints(declared, 'weight_decay').items() if decays} == {'w_c', 'w_gate', 'w_out'}


def test_bfloat16_activations_leave_the_recurrence_in_float32():
  """An impulse after 300 steps has turned and shrunk by Lambda^299."""
  mixer = LRU(state=32, r_min=0.99, r_max=0.999)
  declared = mixer.params(WIDTH)
  params = init(jax.random.key(0), declared)
  rounded = cast(declared, params, jnp.bfloat16)
  x = jnp.zeros((1, 300, WIDTH), jnp.bfloat16).at[:, 0].set(1.0)
  _, first = jax.jit(mixer.apply)(rounded, x[:, :1], mixer.init_state(WIDTH, 1, 300))
  _, last = jax.jit(mixer.apply)(rounded, x, mixer.init_state(WIDTH, 1, 300))
  first, last = (np.asarray(s['real'], np.complex128) + 1j * np.asarray(s['imaginary']) for s in (first, last))
  nu, theta, _ = np.asarray(params['ring'], np.float64)
  expected = first * np.exp(299 * (-np.exp(nu) + 1j * np.exp(theta)))
  np.testing.assert_allclose(last, expected, rtol=0, atol=3e-4 * np.abs(expected).max())


def test_what_does_not_fit_is_refused():
  for arguments in (dict(r_min=0.5, r_max=0.4), dict(r_max=1.1), dict(r_min=-0.1)):
    with pytest.raises(ValueError, match='LRU: '):
      LRU(state=4, **arguments)
