"""minGRU in the paper's two forms, written in numpy float64: the step loop, and the cumulative sums in log space."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.params import hints, init
from ssmlab.mixers.mingru import MinGRU

WIDTH, BATCH, TIME = 6, 2, 40
softplus = lambda x: np.logaddexp(0, x)
sigmoid = lambda x: 1 / (1 + np.exp(-x))


def convolved(p, x):
  """x plus the depthwise convolution and the map after it."""
  if 'mix' not in p:
    return x
  mix, y = p['mix'], np.zeros_like(x)
  steps = len(mix['conv'])
  for t in range(x.shape[1]):
    for back in range(min(steps, t + 1)):
      y[:, t] += mix['conv'][steps - 1 - back] * x[:, t - back]
  return x + (y + mix['b_conv']) @ mix['w_mix'] + mix['b_mix']


def by_steps(p, x):
  u = convolved(p, x)
  h, out = np.zeros((BATCH, p['w_h'].shape[1])), []
  for t in range(x.shape[1]):
    z, candidate = sigmoid(u[:, t] @ p['w_z'] + p['b_z']), u[:, t] @ p['w_h'] + p['b_h']
    h = (1 - z) * h + z * np.where(candidate >= 0, candidate + 0.5, sigmoid(candidate))
    out.append(h @ p['w_out'] + p['b_out'])
  return np.stack(out, axis=1), h


def in_log_space(p, x):
  """h[t] = exp(a*[t] + logcumsumexp(log b - a*)[t]), a* the cumulative sum of log(1 - z): appendix B, from nothing read."""
  u = convolved(p, x)
  k, candidate = u @ p['w_z'] + p['b_z'], u @ p['w_h'] + p['b_h']
  log_g = np.where(candidate >= 0, np.log(np.maximum(candidate, 0) + 0.5), -softplus(-candidate))
  a = np.cumsum(-softplus(k), axis=1)
  h = np.exp(a + np.logaddexp.accumulate(-softplus(-k) + log_g - a, axis=1))
  return h @ p['w_out'] + p['b_out']


@pytest.mark.parametrize('mixer', (MinGRU(expand=1.5), MinGRU(expand=2.0, conv_width=4)), ids=('plain', 'conv4'))
@pytest.mark.parametrize('precision, tolerance', (('float64', 1e-11), ('float32', 2e-5)))
def test_both_forms_of_the_paper(mixer, precision, tolerance):
  random = np.random.default_rng(1)
  p = jax.tree.map(lambda v: np.asarray(v, np.float64) + 0.5 * random.normal(size=v.shape), init(jax.random.key(0), mixer.params(WIDTH)))
  x = 2 * random.normal(size=(BATCH, TIME, WIDTH))
  expected, last = by_steps(p, x)
  np.testing.assert_allclose(in_log_space(p, x), expected, atol=1e-11 * np.abs(expected).max())
  with jax.enable_x64(precision == 'float64'):
    p, x = jax.tree.map(lambda v: jnp.asarray(v, precision), (p, x))
    y, none = jax.jit(mixer.apply)(p, x)
    y_state, state = jax.jit(mixer.apply)(p, x, mixer.init_state(WIDTH, BATCH, TIME))
  assert none is None and y.dtype == precision
  for result in (y, y_state):
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * np.abs(expected).max())
  np.testing.assert_allclose(state['h'], last, rtol=0, atol=tolerance * np.abs(last).max())


def test_start():
  """PyTorch's Linear: uniform within 1 / sqrt(inputs), biases too; the gates' weights are not decayed."""
  declared = MinGRU(expand=1.5, conv_width=4).params(400)
  params = init(jax.random.key(0), declared)
  for name, bound in (('w_h', 0.05), ('b_h', 0.05), ('w_z', 0.05), ('b_z', 0.05), ('w_out', 600 ** -0.5), ('b_out', 600 ** -0.5)):
    values = np.abs(params[name])
    assert 0.98 * bound < values.max() <= bound and abs(values.mean() / bound - 0.5) < 0.06, name
  assert 0.49 < np.abs(params['mix']['conv']).max() <= 0.5 and params['w_h'].shape == (400, 600)
  assert [name for name, decays in hints(declared, 'weight_decay').items() if decays is True] == ['w_out']


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match='conv_width=-1'):
    MinGRU(expand=1.0, conv_width=-1)
  with pytest.raises(ValueError, match='expand=0.1'):
    MinGRU(expand=0.1).params(4)
