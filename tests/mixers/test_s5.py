"""S5 against the paper's equations in numpy float64, in its diagonal form and as the dense HiPPO system that it starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from ssmlab.core.dtypes import cast
from ssmlab.core.params import hints, init, stack
from ssmlab.mixers.s5 import S5, _hippo_normal

WIDTH, BATCH, TIME = 5, 2, 40


def drawn(mixer, spread=0.3):
  params = init(jax.random.key(0), mixer.params(WIDTH))
  random = np.random.default_rng(1)
  return {name: np.asarray(p, np.float64) + spread * random.normal(size=p.shape) for name, p in params.items()}, random.normal(size=(BATCH, TIME, WIDTH))


def by_steps(mixer, p, x):
  """Output and last state, straight from the paper: discretise, step, read, D, gelu (tanh form), half GLU."""
  eigenvalues = (p['lambda_real'] if mixer.least_decay is None else np.minimum(p['lambda_real'], -mixer.least_decay)) + 1j * p['lambda_imag']
  step = np.exp(p['log_step'])
  if mixer.bilinear:
    decay = (1 + step / 2 * eigenvalues) / (1 - step / 2 * eigenvalues)
    factor = step / (1 - step / 2 * eigenvalues)
  else:
    decay = np.exp(eigenvalues * step)
    factor = (decay - 1) / eigenvalues
  b, c = p['w_b'][0] + 1j * p['w_b'][1], p['w_c'][0] + 1j * p['w_c'][1]
  h, out = np.zeros((BATCH, len(decay)), complex), []
  for t in range(TIME):
    h = decay * h + factor * (x[:, t] @ b)
    out.append((2 if mixer.conjugate else 1) * (h @ c).real + p['d'] * x[:, t])
  y = np.stack(out, axis=1)
  y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y ** 3)))
  return y / (1 + np.exp(-(y @ p['w_gate'] + p['b_gate']))), h


@pytest.mark.parametrize('mixer', (S5(16, 2), S5(16, 2, bilinear=True), S5(16, 4, conjugate=False, complex_c=True), S5(12, 1, least_decay=0.5),
                                   S5(12, 1, least_decay=None)), ids=('zoh', 'bilinear', 'language', 'clipped', 'free'))
@pytest.mark.parametrize('precision, tolerance', (('float64', 1e-11), ('float32', 3e-5)))
def test_definition(mixer, precision, tolerance):
  p, x = drawn(mixer)
  expected, last = by_steps(mixer, p, x)
  with jax.enable_x64(precision == 'float64'):
    p, x = jax.tree.map(lambda v: jnp.asarray(v, precision), (p, x))
    y, none = jax.jit(mixer.apply)(p, x)
    y_state, state = jax.jit(mixer.apply)(p, x, mixer.init_state(WIDTH, BATCH, TIME))
  assert none is None and y.dtype == precision
  for result in (y, y_state):
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * np.abs(expected).max())
  np.testing.assert_allclose(np.asarray(state['real']) + 1j * np.asarray(state['imaginary']), last, rtol=0, atol=tolerance * np.abs(last).max())


def hippo_normal_part(size):
  """A + p p^T, entry by entry."""
  a = np.zeros((size, size))
  for n in range(size):
    for k in range(size):
      a[n, k] = -np.sqrt(2 * n + 1) * np.sqrt(2 * k + 1) if n > k else -(n + 1.0) if n == k else 0.0
      a[n, k] += np.sqrt(n + 0.5) * np.sqrt(k + 0.5)
  return a


def test_starts_as_the_dense_hippo_system():
  """Same step everywhere: diagonal states in the eigenbasis are the dense real system's, discretised by the matrix exponential."""
  mixer, size, dt = S5(state=12, blocks=2), 6, 0.07
  p, x = drawn(mixer, spread=0.0)
  p['log_step'] = np.full_like(p['log_step'], np.log(dt))
  frequencies, vectors = _hippo_normal(size)
  np.testing.assert_allclose((vectors * (-0.5 + 1j * frequencies)) @ vectors.conj().T, hippo_normal_part(size), atol=1e-12)
  np.testing.assert_allclose(p['lambda_imag'], np.tile(frequencies[:3], 2), rtol=1e-6)
  assert (p['lambda_real'] == -0.5).all() and (frequencies[:3] < 0).all()
  half = scipy.linalg.block_diag(vectors[:, :3], vectors[:, :3])                                     # [P, P / 2]
  b = 2 * np.real(half @ (p['w_b'][0] + 1j * p['w_b'][1]).T)                                         # the real matrix that was drawn
  np.testing.assert_allclose(half.conj().T @ b, (p['w_b'][0] + 1j * p['w_b'][1]).T, atol=1e-6)
  dense = scipy.linalg.block_diag(hippo_normal_part(size), hippo_normal_part(size))
  decay = scipy.linalg.expm(dense * dt)
  factor = np.linalg.solve(dense, decay - np.eye(12)) @ b
  h = np.zeros((BATCH, 12))
  for t in range(TIME):
    h = h @ decay.T + x[:, t] @ factor.T
  _, state = jax.jit(mixer.apply)(jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), p), jnp.asarray(x, jnp.float32), mixer.init_state(WIDTH, BATCH, TIME))
  real = 2 * np.real((np.asarray(state['real']) + 1j * np.asarray(state['imaginary'])) @ half.T)
  np.testing.assert_allclose(real, h, rtol=0, atol=1e-5 * np.abs(h).max())


def test_sizes_and_hints_of_the_start():
  """Under jit and stacked: constants are computed on the host, every layer has its own draw."""
  mixer, width = S5(state=64, blocks=4), 128
  declared = mixer.params(width)
  params = jax.jit(lambda key: init(key, stack(declared, 3)))(jax.random.key(0))
  size = lambda name: float(np.square(params[name]).sum(1).mean())                                   # |.|^2 of a complex entry
  assert abs(size('w_b') * 64 - 1) < 0.03 and abs(size('w_c') * 64 - 2) < 0.06
  assert abs(np.square(init(jax.random.key(0), S5(64, 4, complex_c=True).params(width))['w_c']).mean() - 0.5) < 0.02
  assert np.abs(params['w_b'][0] - params['w_b'][1]).max() > 0.1 and (params['lambda_imag'][0] == params['lambda_imag'][2]).all()
  step = np.exp(params['log_step'])
  assert 1e-3 <= step.min() < 2e-3 and 0.05 < step.max() <= 0.1 + 1e-6
  assert {name for name, rate in hints(declared, 'rate').items() if rate < 1} == {'lambda_real', 'lambda_imag', 'log_step', 'w_b'}
  assert {name for name, decays in hints(declared, 'weight_decay').items() if decays} == {'w_c', 'w_gate'}


def test_start_is_real_b_and_independent_c_in_the_eigenbasis():
  """Turned back, B is real, and its entries and C's lie inside the cut of the truncated normal; turned wrongly, some would not."""
  mixer, width, cut = S5(state=64, blocks=4, conjugate=False), 256, 2 / 0.8796 / np.sqrt(64) * 1.0001
  params = init(jax.random.key(0), mixer.params(width))
  basis = scipy.linalg.block_diag(*[_hippo_normal(16)[1]] * 4)
  b, c = (np.asarray(params[name][0]) + 1j * np.asarray(params[name][1]) for name in ('w_b', 'w_c'))
  b, c = basis @ b.T, basis.conj() @ c                                                               # V (V^H B), ((C V) V^H)^T
  assert np.abs(b.imag).max() < 1e-5
  for part in (b.real, c.real, c.imag):
    assert 0.97 * cut < np.abs(part).max() <= cut and abs(np.square(part).mean() * 64 - 1) < 0.03


def test_bfloat16_activations_leave_the_recurrence_in_float32():
  """An impulse after 300 steps has turned and shrunk by exp(Lambda dt)^299."""
  mixer = S5(state=32, blocks=1)
  declared = mixer.params(WIDTH)
  params = init(jax.random.key(0), declared)
  x = jnp.zeros((1, 300, WIDTH), jnp.bfloat16).at[:, 0].set(1.0)
  rounded = cast(declared, params, jnp.bfloat16)
  _, first = jax.jit(mixer.apply)(rounded, x[:, :1], mixer.init_state(WIDTH, 1, 300))
  _, last = jax.jit(mixer.apply)(rounded, x, mixer.init_state(WIDTH, 1, 300))
  first, last = (np.asarray(s['real'], np.complex128) + 1j * np.asarray(s['imaginary']) for s in (first, last))
  p = {name: np.asarray(v, np.float64) for name, v in params.items()}
  expected = first * np.exp(299 * np.exp(p['log_step']) * (p['lambda_real'] + 1j * p['lambda_imag']))
  np.testing.assert_allclose(last, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_what_does_not_fit_is_refused():
  for arguments in (dict(state=12, blocks=4), dict(state=16, blocks=0), dict(dt_min=0.2), dict(least_decay=0.0)):
    with pytest.raises(ValueError, match='S5: '):
      S5(**arguments)
