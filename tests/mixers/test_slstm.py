"""sLSTM against the paper's equations in float64, token by token, and the authors' start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.params import at_layer, init
from ssmlab.mixers.slstm import SLSTM

WIDTH, TIME = 12, 11


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def setup(mixer: SLSTM, seed: int = 0):
  random = np.random.default_rng(seed)
  params = jax.tree.map(lambda p: np.asarray(p, np.float64) + 0.5 * random.normal(size=p.shape), init(jax.random.key(seed), mixer.params(WIDTH)))
  return params, 2 * random.normal(size=(2, TIME, WIDTH))


def step_loop(mixer, p, x):
  """(y, h, c, n, m) of one row: eq. 8-14 with the stabiliser of eq. 15-17; convolution, group norm as in the authors' layer.

  p has the input gate's bias too, which ours leaves out.
  """
  size = WIDTH // mixer.heads
  heads = lambda y: y.reshape(mixer.heads, size)
  h, c, n, m = (np.zeros((mixer.heads, size)) for _ in range(4))
  y = np.zeros((TIME, WIDTH))
  for t in range(TIME):
    convolved = x[t]
    if mixer.conv_width:
      total = p['b_conv'].copy()
      for back in range(min(mixer.conv_width, t + 1)):
        total += p['conv'][mixer.conv_width - 1 - back] * x[t - back]
      convolved = total * sigmoid(total)
    raw = {}
    for index, (name, source) in enumerate(zip('ifzo', (convolved, convolved, x[t], x[t]))):
      raw[name] = np.stack([heads(source)[k] @ p[f'w_{name}'][k] + h[k] @ p['recurrent'][k, :, index] for k in range(mixer.heads)]) + heads(p[f'b_{name}'])
    log_f = raw['f'] if mixer.exponential_forget else np.log(sigmoid(raw['f']))
    top = raw['i'] if t == 0 else np.maximum(log_f + m, raw['i'])
    keep, write = np.exp(log_f + m - top), np.exp(raw['i'] - top)
    c, n, m = keep * c + write * np.tanh(raw['z']), keep * n + write, top
    h = sigmoid(raw['o']) * c / n
    centred = h - h.mean(axis=1, keepdims=True)
    y[t] = (centred / np.sqrt((centred ** 2).mean(axis=1, keepdims=True) + mixer.eps)).reshape(-1) * p['norm_scale']
  return y, h, c, n, m


@pytest.mark.parametrize('mixer', [SLSTM(heads=3), SLSTM(heads=2, exponential_forget=True, conv_width=2), SLSTM(heads=1, conv_width=0)], ids=repr)
def test_the_papers_equations(mixer):
  """Output and final state, whatever the input gate's bias."""
  params, x = setup(mixer)
  with jax.enable_x64(True):
    y, state = jax.jit(mixer.apply)(params, x, mixer.init_state(WIDTH, 2, TIME))
  narrow, _ = jax.jit(mixer.apply)(jax.tree.map(jnp.float32, params), jnp.float32(x))
  for row in range(2):
    bias = np.random.default_rng(row).normal(size=WIDTH)
    expected, *last = step_loop(mixer, params | dict(b_i=bias), x[row])
    last[3] -= bias.reshape(last[3].shape)                                      # all that the bias does
    np.testing.assert_allclose(y[row], expected, atol=1e-11)
    np.testing.assert_allclose(narrow[row], expected, atol=1e-3)                # the norm divides by what may be small
    for mine, theirs in zip(state['cell'], last):
      np.testing.assert_allclose(mine[row], theirs, atol=1e-11)
  assert set(state) == ({'cell', 'conv'} if mixer.conv_width else {'cell'})


def test_the_authors_start():
  """Recurrent weights 0; bias of f from 5 to -7, of the others 0; gate weights by small init; PyTorch's start of the convolution."""
  mixer, width = SLSTM(heads=2), 128
  declared = mixer.params(width)
  first, last = (init(jax.random.key(0), at_layer(declared, index, 12)) for index in (0, 11))
  assert not np.asarray(first['recurrent']).any() and not any(np.asarray(first[f'b_{name}']).any() for name in 'zo')
  ramp = np.arange(64) / 63
  for params, power in ((first, 0.3), (last, 1.6)):
    np.testing.assert_allclose(params['b_f'], np.tile(-(-5.0 + 12.0 * ramp ** power), 2), atol=1e-5)
  for name in 'ifzo':
    np.testing.assert_allclose(np.std(first[f'w_{name}']), np.sqrt(2 / (5 * width)), rtol=0.03)
  assert np.abs(first['conv']).max() <= 0.5 and np.std(first['conv']) > 0.25
  assert {name for name, p in declared.items() if not p.weight_decay} == {
      'recurrent', 'b_f', 'b_z', 'b_o', 'b_conv', 'norm_scale'}
  assert {name for name, p in declared.items() if p.full_precision} == {'b_f'}


def test_refused():
  with pytest.raises(ValueError, match='width 10 is not a multiple of heads=4'):
    SLSTM().params(10)
  with pytest.raises(ValueError, match='conv_width=-1 must be at least 0'):
    SLSTM(conv_width=-1)
