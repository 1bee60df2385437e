"""S4D against the paper's equations in numpy float64: the authors' FFT kernel and the step loop; where A starts; what stays float32."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.dtypes import cast
from ssmlab.core.params import hints, init
from ssmlab.mixers.s4d import S4D

WIDTH, BATCH, TIME = 6, 2, 45


def drawn(mixer, time=TIME, spread=0.3):
  """Parameters a little away from their start, and an input, as float64 numpy."""
  params = init(jax.random.key(0), mixer.params(WIDTH))
  random = np.random.default_rng(1)
  return {name: np.asarray(p, np.float64) + spread * random.normal(size=p.shape) for name, p in params.items()}, random.normal(size=(BATCH, time, WIDTH))


def system(p):
  """A [width, n], discrete decay and input factor, C."""
  a = -np.exp(p['log_a_real']) + 1j * p['a_imag']
  decay = np.exp(a * np.exp(p['log_dt'])[:, None])
  return decay, (decay - 1) / a, p['c'][0] + 1j * p['c'][1]


def closed(p, y, x):
  """D, exact GELU, the 1x1 convolution to 2 H and its gate."""
  y = y + p['d'] * x
  y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
  return (y @ p['w_out'] + p['b_out']) / (1 + np.exp(-(y @ p['w_gate'] + p['b_gate'])))


def by_steps(p, x):
  decay, factor, c = system(p)
  h, out = np.zeros((BATCH, *decay.shape), complex), []
  for t in range(x.shape[1]):
    h = decay * h + factor * x[:, t, :, None]
    out.append(2 * (c * h).sum(-1).real)
  return closed(p, np.stack(out, axis=1), x), h


def by_kernel(p, x):
  decay, factor, c = system(p)
  length = x.shape[1]
  kernel = 2 * np.einsum('dn,dnl->dl', c * factor, decay[..., None] ** np.arange(length)).real
  y = np.fft.irfft(np.fft.rfft(x, 2 * length, axis=1) * np.fft.rfft(kernel, 2 * length).T, 2 * length, axis=1)[:, :length]
  return closed(p, y, x)


@pytest.mark.parametrize('mixer', (S4D(state=8), S4D(state=8, inverse=True)), ids=('linear', 'inverse'))
@pytest.mark.parametrize('precision, tolerance', (('float64', 1e-11), ('float32', 2e-5)))
def test_kernel_and_steps(mixer, precision, tolerance):
  p, x = drawn(mixer)
  expected, last = by_steps(p, x)
  np.testing.assert_allclose(by_kernel(p, x), expected, atol=1e-11 * np.abs(expected).max())
  with jax.enable_x64(precision == 'float64'):
    p, x = jax.tree.map(lambda v: jnp.asarray(v, precision), (p, x))
    y, none = jax.jit(mixer.apply)(p, x)
    y_state, state = jax.jit(mixer.apply)(p, x, mixer.init_state(WIDTH, BATCH, TIME))
  assert none is None and y.dtype == precision
  for result in (y, y_state):
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * np.abs(expected).max())
  np.testing.assert_allclose(np.asarray(state['real']) + 1j * np.asarray(state['imaginary']), last, rtol=0, atol=tolerance * np.abs(last).max())


def test_bfloat16_activations_leave_the_recurrence_in_float32():
  """The state over 400 steps of a bfloat16 input; dt A in bfloat16 would turn its phase by whole radians."""
  mixer = S4D(state=32)
  p, x = drawn(mixer, time=400, spread=0.0)
  rounded = cast(mixer.params(WIDTH), jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), p), jnp.bfloat16)
  assert [name for name, v in rounded.items() if v.dtype == jnp.float32] == ['a_imag', 'log_a_real', 'log_dt']
  x = jnp.asarray(x, jnp.bfloat16)
  _, state = jax.jit(mixer.apply)(rounded, x, mixer.init_state(WIDTH, BATCH, 400))
  _, last = by_steps(p, np.asarray(x, np.float64))
  np.testing.assert_allclose(np.asarray(state['real']) + 1j * np.asarray(state['imaginary']), last, rtol=0, atol=1e-4 * np.abs(last).max())


def test_start():
  mixer, width = S4D(state=8), 2000
  declared = mixer.params(width)
  params = init(jax.random.key(0), declared)
  np.testing.assert_allclose(params['log_a_real'], np.full((width, 4), np.log(0.5)), rtol=1e-6)
  np.testing.assert_allclose(params['a_imag'][jnp.array([0, -1])], np.pi * np.array([[0, 1, 2, 3]] * 2), rtol=1e-6)
  inverse = init(jax.random.key(0), S4D(state=8, inverse=True).params(width))['a_imag']
  np.testing.assert_allclose(inverse[3], [8 / np.pi * 7, 8 / np.pi * (8 / 3 - 1), 8 / np.pi * (8 / 5 - 1), 8 / np.pi / 7], rtol=1e-5)
  log_dt = np.asarray(params['log_dt'])
  assert np.log(1e-3) <= log_dt.min() < np.log(1.1e-3) and np.log(0.09) < log_dt.max() <= np.log(0.1) + 1e-6
  assert abs(log_dt.mean() - np.log(1e-2)) < 0.1
  assert abs(np.square(params['c']).mean() - 0.5) < 0.02 and abs(np.square(params['d']).mean() - 1) < 0.1
  slow = {name for name, rate in hints(declared, 'rate').items() if rate < 1}
  assert slow == {'log_dt', 'log_a_real', 'a_imag'} and not any(declared[name].weight_decay for name in slow)
