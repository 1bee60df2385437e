"""Mamba-3 against its equations token by token in float64, and its initial values."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.params import at_layer, init
from ssmlab.mixers.mamba3 import TINY, Mamba3

WIDTH = 12
HALF = Mamba3(head_dim=6, state=10, groups=2, turned=0.5)                  # 4 heads, 2 pairs of 5 turned
WHOLE = Mamba3(head_dim=12, state=6, expand=1, turned=1.0, lowest_rate=0.4, out_norm=True, eps=1e-3)


def draw(mixer, seed=0):
  """Parameters away from their start; B and C, rates and angles spread widely."""
  params = init(jax.random.key(seed), mixer.params(WIDTH))
  params = {name: np.asarray(a, np.float64) for name, a in params.items()}
  random = np.random.default_rng(seed)
  return {name: a * (2 if name.startswith('w_') else 1) + 0.3 * random.normal(size=a.shape) for name, a in params.items()}


def turned(x, phi):
  """Pairs (0, 1), (2, 3), ... multiplied by exp(i phi), as complex numbers."""
  pairs = phi.shape[-1]
  z = (x[..., 0:2 * pairs:2] + 1j * x[..., 1:2 * pairs:2]) * np.exp(1j * phi)
  return np.concatenate([np.stack([z.real, z.imag], axis=-1).reshape(*x.shape[:-1], 2 * pairs), x[..., 2 * pairs:]], axis=-1)


def steps(mixer, p, u):
  """y [time, width] and the state after the last token of one sequence u [time, width]."""
  softplus, sigmoid = lambda x: np.logaddexp(0, x), lambda x: 1 / (1 + np.exp(-x))
  rms = lambda x: x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + mixer.eps)
  heads = mixer.expand * WIDTH // mixer.head_dim
  pairs = p['w_angle'].shape[1]
  ssm, phi = np.zeros((heads, mixer.state, mixer.head_dim)), np.zeros((heads, pairs))
  k_before, v_before, out = np.zeros((heads, mixer.state)), np.zeros((heads, mixer.head_dim)), []
  for token in u:
    head = lambda name: (token @ p[f'w_{name}']).reshape(heads, -1)
    per_head = lambda name: np.stack([(rms((token @ p[f'w_{name}']).reshape(mixer.groups, -1)) * p[f'{name}_norm'])[h * mixer.groups // heads]
                                      for h in range(heads)]) + p[f'{name}_bias']
    dt = softplus(token @ p['w_dt'] + p['dt_bias'])
    rate = -np.maximum(softplus(token @ p['w_a']), mixer.lowest_rate)
    lam = sigmoid(token @ p['w_lam'])
    phi = (phi + dt[:, None] * np.pi * np.tanh(token @ p['w_angle'])) % (2 * np.pi)
    k, q, v = turned(per_head('b'), phi), turned(per_head('c'), phi), head('x')
    alpha = np.exp(dt * rate)
    ssm = (alpha[:, None, None] * ssm + ((1 - lam) * dt * alpha)[:, None, None] * k_before[:, :, None] * v_before[:, None]
           + (lam * dt)[:, None, None] * k[:, :, None] * v[:, None])
    k_before, v_before = k, v
    o = np.einsum('hn,hnp->hp', q, ssm) + p['d'][:, None] * v
    if mixer.out_norm:
      o = rms(o) * p['norm_scale'].reshape(heads, -1)
    z = head('z')
    out.append((o * z * sigmoid(z)).reshape(-1) @ p['w_out'])
  return np.stack(out), dict(ssm=ssm, angle=phi, k=k_before, v=v_before)


@pytest.mark.parametrize('mixer', [HALF, WHOLE], ids=['half', 'whole'])
@pytest.mark.parametrize('lengths', [(41,), (1, 20, 3, 17)], ids=['one call', 'calls'])
def test_is_the_step_form(mixer, lengths):
  p = draw(mixer)
  u = np.random.default_rng(1).normal(size=(2, 41, WIDTH))
  expected = [steps(mixer, p, row) for row in u]
  params, apply = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), p), jax.jit(mixer.apply)
  state, parts, at = mixer.init_state(WIDTH, 2, 41), [], 0
  for length in lengths:
    y, state = apply(params, jnp.asarray(u[:, at:at + length], jnp.float32), state)
    parts.append(y)
    at += length
  outputs = np.stack([y for y, _ in expected])
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), outputs, atol=1e-5 * np.abs(outputs).max())
  for name in ('ssm', 'k', 'v'):
    wanted = np.stack([s[name] for _, s in expected])
    np.testing.assert_allclose(state[name], wanted, atol=1e-5 * np.abs(wanted).max())
  assert ((state['angle'] >= 0) & (state['angle'] <= 2 * math.pi)).all()
  around = np.exp(1j * np.asarray(state['angle'], np.float64)) - np.exp(1j * np.stack([s['angle'] for _, s in expected]))
  assert np.abs(around).max() < 1e-5


def test_documents_are_their_own_sequences():
  p = draw(HALF)
  u = np.random.default_rng(2).normal(size=(1, 30, WIDTH))
  ids = np.array([[0, 0] + [3] * 9 + [4] + [5] * 8 + [0] * 2 + [5] * 8])
  y, _ = HALF.apply(jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), p), jnp.asarray(u, jnp.float32), segment_ids=jnp.asarray(ids, jnp.int32))
  for begin, end in ((2, 11), (11, 12), (12, 20), (22, 30)):
    expected, _ = steps(HALF, p, u[0, begin:end])
    np.testing.assert_allclose(y[0, begin:end], expected, atol=1e-5 * np.abs(expected).max())


def test_long_decoding_keeps_the_angle_small():
  """What is carried is the angle in one turn, however long the sequence."""
  p = jax.tree.map(jnp.asarray, init(jax.random.key(0), HALF.params(WIDTH))) | dict(dt_bias=jnp.full(4, 3.0), w_angle=jnp.full((WIDTH, 2), 1.0))
  _, state = HALF.apply(p, jnp.ones((1, 50, WIDTH)), HALF.init_state(WIDTH, 1, 50))
  assert 0 <= float(state['angle'].min()) and float(state['angle'].max()) <= 2 * math.pi


def test_initial_values():
  mixer = Mamba3(head_dim=4, state=8, out_norm=True)
  p = init(jax.random.key(0), at_layer(mixer.params(512), 0, 9))
  dt = np.log1p(np.exp(np.asarray(p['dt_bias'], np.float64)))
  assert 0.99e-3 < dt.min() < 2e-3 and 0.05 < dt.max() < 0.101 and abs(np.log(dt).mean() - np.log(1e-2)) < 0.3
  for name in ('b_bias', 'c_bias', 'b_norm', 'c_norm', 'd', 'norm_scale'):
    assert (p[name] == 1).all()
  bound = lambda name: float(jnp.abs(p[name]).max()) * p[name].shape[0] ** 0.5
  assert 0.99 < bound('w_x') <= 1 and 0.99 / 3 < bound('w_out') <= 1 / 3             # over sqrt(depth), depth 9
  hints = {name: param for name, param in mixer.params(512).items()}
  assert hints['dt_bias'].full_precision and not hints['dt_bias'].weight_decay and not hints['d'].weight_decay
  assert p['w_angle'].shape == (512, 2)


def test_sizes_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match='state=7 must be even'):
    Mamba3(state=7)
  with pytest.raises(ValueError, match='head_dim=8 times groups=2'):
    dataclasses.replace(TINY, groups=2).params(WIDTH)
