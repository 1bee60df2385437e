"""minLSTM in the paper's two forms, written in numpy float64: the step loop, and the cumulative sums in log space."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.params import hints, init
from ssmlab.mixers.minlstm import MinLSTM

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


def by_steps(mixer, p, x):
  u = convolved(p, x)
  h, out = np.zeros((BATCH, p['w_h'].shape[1])), []
  for t in range(x.shape[1]):
    forget, write = (sigmoid(u[:, t] @ p[f'w_{n}'] + p[f'b_{n}']) for n in 'fi')
    if mixer.normalised:
      forget, write = forget / (forget + write), write / (forget + write)
    candidate = u[:, t] @ p['w_h'] + p['b_h']
    h = forget * h + write * np.where(candidate >= 0, candidate + 0.5, sigmoid(candidate))
    out.append(h @ p['w_out'] + p['b_out'])
  return np.stack(out, axis=1), h


def in_log_space(mixer, p, x):
  """h[t] = exp(a*[t] + logcumsumexp(log b - a*)[t]), a* the cumulative sum of log f': appendix B, from nothing read."""
  u = convolved(p, x)
  candidate, forget, write = (u @ p[f'w_{n}'] + p[f'b_{n}'] for n in 'hfi')
  log_g = np.where(candidate >= 0, np.log(np.maximum(candidate, 0) + 0.5), -softplus(-candidate))
  log_f, log_i = -softplus(-forget), -softplus(-write)
  if mixer.normalised:
    log_f, log_i = -softplus(log_i - log_f), -softplus(log_f - log_i)
  a = np.cumsum(log_f, axis=1)
  h = np.exp(a + np.logaddexp.accumulate(log_i + log_g - a, axis=1))
  return h @ p['w_out'] + p['b_out']


@pytest.mark.parametrize('mixer', (MinLSTM(expand=1.5), MinLSTM(expand=2.0, conv_width=4, forget_bias=2.0), MinLSTM(expand=1.0, normalised=False)),
                         ids=('plain', 'conv4', 'bare'))
@pytest.mark.parametrize('precision, tolerance', (('float64', 1e-11), ('float32', 2e-5)))
def test_both_forms_of_the_paper(mixer, precision, tolerance):
  random = np.random.default_rng(1)
  p = jax.tree.map(lambda v: np.asarray(v, np.float64) + 0.5 * random.normal(size=v.shape), init(jax.random.key(0), mixer.params(WIDTH)))
  x = 2 * random.normal(size=(BATCH, TIME, WIDTH))
  expected, last = by_steps(mixer, p, x)
  np.testing.assert_allclose(in_log_space(mixer, p, x), expected, atol=1e-11 * np.abs(expected).max())
  with jax.enable_x64(precision == 'float64'):
    p, x = jax.tree.map(lambda v: jnp.asarray(v, precision), (p, x))
    y, none = jax.jit(mixer.apply)(p, x)
    y_state, state = jax.jit(mixer.apply)(p, x, mixer.init_state(WIDTH, BATCH, TIME))
  assert none is None and y.dtype == precision
  for result in (y, y_state):
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * np.abs(expected).max())
  np.testing.assert_allclose(state['h'], last, rtol=0, atol=tolerance * np.abs(last).max())


def test_closed_gates_are_still_shares_of_one():
  """Both gates at sigmoid(-200): f / (f + i) in float32 would be 0 / 0; the state is halfway between the old one and the candidate."""
  mixer = MinLSTM(expand=1.0)
  params = jax.tree.map(jnp.zeros_like, init(jax.random.key(0), mixer.params(WIDTH))) | {'b_f': jnp.full(WIDTH, -200.0), 'b_i': jnp.full(WIDTH, -200.0)}
  _, state = jax.jit(mixer.apply)(params, jnp.zeros((1, 1, WIDTH)), mixer.init_state(WIDTH, 1, 1))
  np.testing.assert_allclose(state['h'], np.full((1, WIDTH), 0.25), rtol=1e-6)


def test_start():
  """PyTorch's Linear: uniform within 1 / sqrt(inputs), biases too; the gates' weights are not decayed."""
  declared = MinLSTM(expand=1.5, conv_width=4, forget_bias=3.0).params(400)
  params = init(jax.random.key(0), declared)
  params['b_f'] = params['b_f'] - 3.0
  for name, bound in ((f'{kind}_{gate}', 0.05) for kind in 'wb' for gate in 'hfi'):
    values = np.abs(params[name])
    assert 0.98 * bound < values.max() <= bound + 1e-6 and abs(values.mean() / bound - 0.5) < 0.06, name
  assert [name for name, decays in hints(declared, 'weight_decay').items() if decays is True] == ['w_out']


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match='conv_width=-1'):
    MinLSTM(expand=1.0, conv_width=-1)
  with pytest.raises(ValueError, match='expand=0.1'):
    MinLSTM(expand=0.1).params(4)
