"""H3 against its two systems in numpy float64: the step loop with the authors' own states, and the kernels; the first values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.params import hints, init
from ssmlab.mixers.h3 import H3
from tests.golden.layer import h3_state

WIDTH, BATCH, TIME = 12, 2, 40
CARRIED = 2e-6               # states are float32, whatever the rest is
CASES = {'bilinear': H3(state=8), 'hold': H3(state=8, hold=True), 'heads': H3(state=8, head_dim=3), 'heads, hold, stepped': H3(
    state=6, head_dim=2, hold=True, by_fft=False), 'a state longer than the input': H3(state=64)}


def drawn(mixer):
  params = init(jax.random.key(0), mixer.params(WIDTH))
  random = np.random.default_rng(1)
  return jax.tree.map(lambda p: np.asarray(p, np.float64) + 0.2 * random.normal(size=p.shape), params), random.normal(size=(BATCH, TIME, WIDTH))


def system(mixer, p):
  """a, b, C of the diagonal system, [heads, modes]."""
  f = p['filter']
  a, dt = (-np.exp(f['inv_a_real']) + 1j * f['a_imag']).T, np.exp(f['log_dt'])[:, None]
  b, c = (f['b'][0] + 1j * f['b'][1]).T, (f['c'][0] + 1j * f['c'][1]).T
  if mixer.hold:
    return np.exp(dt * a), b * (np.exp(dt * a) - 1) / a, c
  return (1 + dt * a / 2) / (1 - dt * a / 2), b * dt / (1 - dt * a / 2), c


def by_steps(mixer, p, x):
  """(y, shift register [batch, width, n], diagonal state [batch, a, b, heads, modes]), token by token."""
  e, (a, b, c) = mixer.head_dim, system(mixer, p)
  q, k, v = (x @ p[f'w_{name}'] + p[f'b_{name}'] for name in 'qkv')
  register, state, out = np.zeros((BATCH, WIDTH, mixer.state)), np.zeros((BATCH, e, e, *a.shape), complex), []
  for t in range(x.shape[1]):
    register = np.concatenate([np.zeros((BATCH, WIDTH, 1)), register[..., :-1]], axis=-1) + p['shift_b'].T * k[:, t, :, None]
    shifted = (register * p['shift_c'].T).sum(-1) + p['shift_skip'] * k[:, t]
    split = lambda y: y.reshape(BATCH, -1, e).transpose(0, 2, 1)                           # [batch, inside, head]
    kv = split(shifted)[:, :, None] * split(v[:, t])[:, None]
    state = a * state + b * kv[..., None]
    y = 2 * (c * state).sum(-1).real + p['skip'] * kv
    out.append((split(q[:, t])[:, :, None] * y).sum(axis=1).reshape(BATCH, WIDTH))         # (b, head)
  return np.stack(out, axis=1) @ p['w_out'] + p['b_out'], register, state


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('precision, tolerance', [('float64', 1e-11), ('float32', 2e-5)])
def test_steps(name, precision, tolerance):
  """Whole (by FFT where the mixer says so), in calls with a state, and the authors' states at the end."""
  mixer = CASES[name]
  p, x = drawn(mixer)
  expected, register, state = by_steps(mixer, p, x)
  close = lambda mine, theirs, least=0.0: np.testing.assert_allclose(mine, theirs, rtol=0, atol=max(tolerance, least) * np.abs(theirs).max())
  with jax.enable_x64(precision == 'float64'):
    params, x = jax.tree.map(lambda v: jnp.asarray(v, precision), (p, x))
    apply = jax.jit(mixer.apply)
    y, none = apply(params, x)
    assert none is None and y.dtype == precision
    close(y, expected)
    mine, seen = mixer.init_state(WIDTH, BATCH, TIME), []
    for begin, end in ((0, 25), (25, 26), (26, TIME)):
      y, mine = apply(params, x[:, begin:end], mine)
      seen.append(y)
    close(jnp.concatenate(seen, axis=1), expected, CARRIED)
    theirs = h3_state(mixer, params, mine)
  close(theirs['shift'], register, CARRIED)
  diagonal = theirs['diagonal'].reshape(BATCH, mixer.head_dim, mixer.head_dim, *theirs['diagonal'].shape[1:])
  close(diagonal[..., 0] + 1j * diagonal[..., 1], state, CARRIED)


@pytest.mark.parametrize('name', CASES)
def test_kernels(name):
  """s[i] = sum_j B[j] C[i + j] and kappa[i] = 2 Re sum C b a^i."""
  mixer = CASES[name]
  p, _ = drawn(mixer)
  a, b, c = system(mixer, p)
  n = mixer.state
  shift = np.stack([sum(p['shift_b'][j] * p['shift_c'][i + j] for j in range(n - i)) for i in range(n)])
  np.testing.assert_allclose(mixer.shift_taps(jax.tree.map(jnp.float32, p)), shift, atol=2e-6 * np.abs(shift).max())
  kappa = 2 * (c * b * a ** np.arange(TIME)[:, None, None]).sum(-1).real
  np.testing.assert_allclose(mixer._filter.taps(jax.tree.map(jnp.float32, p['filter']), TIME), kappa, atol=2e-5 * np.abs(kappa).max())


def test_start():
  mixer, width = H3(state=16, head_dim=2), 300
  declared = mixer.params(width)
  params = init(jax.random.key(0), declared)
  np.testing.assert_array_equal(params['shift_b'], np.eye(16)[:, :1] * np.ones(width))
  np.testing.assert_allclose(mixer.shift_taps(params), params['shift_c'], atol=1e-6)           # B = e_1
  assert 0.24 < np.abs(params['shift_c']).max() <= 0.25
  for name in ('w_q', 'w_k', 'w_v', 'w_out'):
    assert abs(params[name].std() - 0.02) < 1e-3
  assert params['skip'].shape == (150,) and params['shift_skip'].shape == (300,) and abs(params['shift_skip'].std() - 1) < 0.15
  decayed = {name for name, value in hints(declared, 'weight_decay').items() if value is True}
  assert decayed == {'shift_c', 'shift_skip', 'skip', 'w_q', 'w_k', 'w_v', 'w_out'}
  assert {name for name, value in hints(declared, 'weight_decay')['filter'].items() if value} == {'c'}


def test_options_out_of_range():
  with pytest.raises(ValueError, match='state=7 must be even'):
    H3(state=7)
  with pytest.raises(ValueError, match='head_dim=0 must be at least 1'):
    H3(head_dim=0)
  with pytest.raises(ValueError, match='width 10 is not a multiple of head_dim 4'):
    H3(head_dim=4).params(10)
