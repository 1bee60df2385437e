"""TTT-Linear against the paper's equations token by token in float64; its two forms against each other; its initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.params import init
from ssmlab.mixers.ttt_linear import TTTLinear
from ssmlab.ops.inner_descent import inner_descent, loss_gradient

WIDTH, BATCH = 10, 2
PLAIN = TTTLinear(heads=2, head_dim=4, mini_batch=5)
OTHER = TTTLinear(heads=1, head_dim=6, conv_width=2, mini_batch=16, base_rate=3.0, theta=50.0, eps=1e-3)


def draw(mixer):
  random = np.random.default_rng(0)
  params = {name: np.asarray(a, np.float64) for name, a in init(jax.random.key(0), mixer.params(WIDTH)).items()}
  params = {name: a + 0.3 * random.normal(size=a.shape) for name, a in params.items()}
  params['place_rate'] = np.abs(params['place_rate'])                    # the last place's rate is what carries a mini-batch's update on
  params['place_rate'][1] = -0.7                                         # less than 0 with its 1/2: no step
  return params


def steps(mixer, p, x):
  """y [time, width] and (W', b') at the end less the first ones, of one document x [time, width]."""
  heads, size, m = mixer.heads, mixer.head_dim, mixer.mini_batch
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  gelu = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))
  norm = lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + mixer.eps)
  scale, shift = p['inner_scale'], p['inner_shift']
  model = lambda x, weight, bias: np.einsum('hk,hkv->hv', x, weight) + bias
  qk, out = x @ p['w_qk'], []
  start, weight, bias, read = None, p['inner_weight'].copy(), p['inner_bias'].copy(), []
  for t, token in enumerate(x):
    place = t % m
    if place == 0:                                                       # a mini-batch begins: gradients are taken here
      start, read = (weight.copy(), bias.copy()), []
    taps = [qk[t - s] if t >= s else np.zeros_like(qk[0]) for s in range(mixer.conv_width)][::-1]
    q, k = (sum(w * y for w, y in zip(p[f'conv_{name}'], taps)) + p[f'b_conv_{name}'] for name in 'qk')
    angle = np.exp(1j * place * mixer.theta ** (-np.arange(0, size, 2) / size))
    turn = lambda y: np.stack([(z := (y[:, 0::2] + 1j * y[:, 1::2]) * angle).real, z.imag], axis=-1).reshape(heads, size)
    q, k, v = turn(q.reshape(heads, size)), turn(k.reshape(heads, size)), (token @ p['w_v']).reshape(heads, size)
    z = model(k, *start)
    error, gradient = (scale * norm(z) + shift) - (v - k), np.zeros_like(z)
    for h in range(heads):                                               # the norm's Jacobian, entry by entry
      deviation, normed = np.sqrt(z[h].var() + mixer.eps), norm(z[h])
      jacobian = (np.eye(size) - 1 / size - np.outer(normed, normed) / size) / deviation
      gradient[h] = jacobian.T @ (scale[h] * error[h])
    rate = mixer.base_rate / size * sigmoid(token @ p['w_rate'] + p['b_rate'])
    read.append((rate, k, gradient))
    factor = max(1 / (place + 1) + p['place_rate'][place], 0)
    weight = start[0] - factor * sum(r[:, None, None] * k[:, :, None] * g[:, None] for r, k, g in read)
    bias = start[1] - factor * sum(r[:, None] * g for r, _, g in read)
    o = q + scale * norm(model(q, weight, bias)) + shift
    o = norm(o.reshape(-1)) * p['norm_scale'] + p['norm_bias']
    out.append((gelu(token @ p['w_g']) * o) @ p['w_o'])
  return np.stack(out), (weight - p['inner_weight'], bias - p['inner_bias'])


@pytest.mark.parametrize('mixer', [PLAIN, OTHER], ids=['mini-batch 5', 'mini-batch 16'])
@pytest.mark.parametrize('lengths', [(48,), (3, 17, 1, 27)], ids=['one call', 'calls'])
def test_is_the_step_form(mixer, lengths):
  p = draw(mixer)
  x = np.random.default_rng(1).normal(size=(BATCH, 48, WIDTH))
  params, apply = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), p), jax.jit(mixer.apply)
  state, parts, at = mixer.init_state(WIDTH, BATCH, 48), [], 0
  for length in lengths:
    y, state = apply(params, jnp.asarray(x[:, at:at + length], jnp.float32), state)
    parts.append(y)
    at += length
  expected = [steps(mixer, p, row) for row in x]
  outputs = np.stack([y for y, _ in expected])
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), outputs, atol=3e-5 * np.abs(outputs).max())
  np.testing.assert_allclose(apply(params, jnp.asarray(x, jnp.float32))[0], outputs, atol=3e-5 * np.abs(outputs).max())
  if 48 % mixer.mini_batch == 0:                                         # a mini-batch has just ended
    weight, bias = (np.stack(a) for a in zip(*(after for _, after in expected)))
    np.testing.assert_allclose(state['inner']['weight'], weight, atol=3e-5 * np.abs(weight).max())
    np.testing.assert_allclose(state['inner']['bias'], bias, atol=3e-5 * np.abs(bias).max())
    assert not np.any(state['inner']['weight_sum'])


def test_documents_begin_their_own_mini_batches():
  p = draw(PLAIN)
  x = np.random.default_rng(2).normal(size=(1, 40, WIDTH))
  ids = np.array([[0, 0] + [3] * 13 + [4] + [5] * 12 + [0] * 3 + [6] * 9])
  y, _ = PLAIN.apply(jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), p), jnp.asarray(x, jnp.float32), segment_ids=jnp.asarray(ids, jnp.int32))
  for begin, end in ((2, 15), (15, 16), (16, 28), (31, 40)):
    expected, _ = steps(PLAIN, p, x[0, begin:end])
    np.testing.assert_allclose(y[0, begin:end], expected, atol=3e-5 * np.abs(expected).max())


def arguments(time):
  random = np.random.default_rng(3)
  normal = lambda *shape: jnp.asarray(random.normal(size=shape))
  tokens = [normal(BATCH, time, 2, 4), normal(BATCH, time, 2, 4), normal(BATCH, time, 2, 3), jax.nn.sigmoid(normal(BATCH, time, 2)) / 4]
  model = [normal(2, 4, 3), normal(2, 3), normal(2, 3), normal(2, 3)]
  begin = dict(weight=normal(BATCH, 2, 4, 3), weight_sum=normal(BATCH, 2, 4, 3), bias=normal(BATCH, 2, 3), bias_sum=normal(BATCH, 2, 3))
  return tokens, jnp.abs(normal(4)), model, begin


@pytest.mark.parametrize('time', [4, 7, 21])
@pytest.mark.parametrize('carried', [False, True])
def test_mini_batch_form_is_the_token_form(time, carried):
  """Outputs, states and every gradient, in float64; rows that stand at different places of a mini-batch."""
  def loss(arrays, positions, ids):
    tokens, places, model, begin = arrays
    o, state = inner_descent(*tokens, places, positions, *model, 1e-5, initial=begin if carried else None, segment_ids=ids)
    leaves = [o, *jax.tree.leaves(state)]
    return sum(jnp.sum(jnp.sin(leaf + i)) for i, leaf in enumerate(leaves)), leaves

  with jax.enable_x64(True):
    arrays, form = arguments(time), jax.jit(jax.value_and_grad(loss, has_aux=True))
    positions = jnp.asarray([2, 7] if carried else [0, 0])[:, None] + jnp.arange(time)
    (_, whole), d_whole = form(arrays, positions, None)
    (_, single), d_single = form(arrays, positions, jnp.ones((BATCH, time), jnp.int32))
    for a, b in zip(whole + jax.tree.leaves(d_whole), single + jax.tree.leaves(d_single), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-10 * max(float(jnp.abs(b).max()), 1))


def test_gradient_of_the_inner_loss():
  _, _, (_, z, scale, shift), _ = arguments(1)
  target = jnp.cos(z)
  norm = lambda z: (z - z.mean(-1, keepdims=True)) / jnp.sqrt(z.var(-1, keepdims=True) + 1e-3)
  expected = jax.grad(lambda z: jnp.sum((scale * norm(z) + shift - target) ** 2) / 2)(z)
  np.testing.assert_allclose(loss_gradient(z, target, scale, shift, 1e-3), expected, rtol=1e-4, atol=1e-6)


def test_initial_values():
  mixer = TTTLinear(heads=4, head_dim=64)
  p = init(jax.random.key(0), mixer.params(256))
  for name in ('w_qk', 'w_v', 'w_g', 'w_o', 'w_rate', 'inner_weight'):
    assert 0.018 < float(p[name].std()) < 0.022
  assert 0.45 < float(p['conv_q'].std()) < 0.55 and (p['conv_q'] != p['conv_k']).any()
  assert all((p[name] == 1).all() for name in ('inner_scale', 'norm_scale'))
  assert not any(p[name].any() for name in ('inner_bias', 'inner_shift', 'norm_bias', 'b_rate', 'place_rate', 'b_conv_q', 'b_conv_k'))
  assert p['place_rate'].shape == (16,)


def test_sizes_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match='head_dim=3 must be even'):
    TTTLinear(heads=1, head_dim=3)
  with pytest.raises(ValueError, match='mini_batch=0 must be at least 1'):
    TTTLinear(heads=1, head_dim=4, mini_batch=0)
