"""mLSTM against the paper's equations in float64, recurrent and parallel, and the authors' start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.params import Layer, init, stack
from ssmlab.mixers.mlstm import MLSTM

WIDTH, TIME = 12, 19


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def setup(mixer: MLSTM, seed: int = 0):
  """Random parameters around the start and an input, float64."""
  random = np.random.default_rng(seed)
  params = jax.tree.map(lambda p: np.asarray(p, np.float64) + 0.5 * random.normal(size=p.shape), init(jax.random.key(seed), mixer.params(WIDTH)))
  return params, 2 * random.normal(size=(2, TIME, WIDTH))


def projections(mixer, p, x):
  """q (scaled), k, v, capped gates and log of the forget gate of one row: arXiv 2405.04517, eq. 22-27, with the caps of 2503.13427."""
  split = lambda y: y.reshape(TIME, mixer.heads, -1)
  q, k, v = (split(x @ p[f'w_{name}']) for name in 'qkv')
  cap = lambda y: mixer.soft_cap * np.tanh(y / mixer.soft_cap)
  i, f = (cap(x @ p[f'w_{name}'] + p[f'b_{name}']) for name in 'if')
  return q / np.sqrt(mixer.head_dim), k, v, i, np.log(sigmoid(f))


def finish(mixer, p, x, h):
  """Norm over each head, output gate, projection.  h: [time, heads, value]."""
  centred = h - h.mean(axis=-1, keepdims=True)
  normed = centred / np.sqrt((centred ** 2).mean(axis=-1, keepdims=True) + mixer.norm_eps)
  return (sigmoid(x @ p['w_g']) * normed.reshape(TIME, -1) * p['norm_scale']) @ p['w_o']


def recurrent(mixer, p, x):
  """(y, C, n, m) of one row, step by step, eq. 19-21 with the stabiliser."""
  q, k, v, i, log_f = projections(mixer, p, x)
  c, n, m = np.zeros((mixer.heads, mixer.head_dim, v.shape[-1])), np.zeros((mixer.heads, mixer.head_dim)), np.zeros(mixer.heads)
  h = np.zeros_like(v)
  for t in range(TIME):
    top = np.maximum(log_f[t] + m, i[t])
    keep, write = np.exp(log_f[t] + m - top), np.exp(i[t] - top)
    c = keep[:, None, None] * c + write[:, None, None] * k[t][:, :, None] * v[t][:, None, :]
    n, m = keep[:, None] * n + write[:, None] * k[t], top
    for head in range(mixer.heads):
      h[t, head] = c[head].T @ q[t, head] / (max(abs(n[head] @ q[t, head]), np.exp(-m[head])) + mixer.eps)
  return finish(mixer, p, x, h), c, n, m


def parallel(mixer, p, x):
  """The same in the parallel form of the appendix: a matrix of gates, stabilised by its rows' maxima."""
  q, k, v, i, log_f = projections(mixer, p, x)
  h = np.zeros_like(v)
  for head in range(mixer.heads):
    total = np.cumsum(log_f[:, head])
    gates = total[:, None] - total[None, :] + i[None, :, head]
    gates[np.triu_indices(TIME, 1)] = -np.inf
    top = gates.max(axis=1)
    scores = q[:, head] @ k[:, head].T * np.exp(gates - top[:, None])
    h[:, head] = scores @ v[:, head] / (np.maximum(np.abs(scores.sum(axis=1)), np.exp(-top)) + mixer.eps)[:, None]
  return finish(mixer, p, x, h)


CASES = [MLSTM(heads=3, head_dim=4, value_dim=6, input_bias=0.0), MLSTM(heads=2, head_dim=4), MLSTM(heads=1, head_dim=2, soft_cap=3.0, input_bias=2.0)]


@pytest.mark.parametrize('mixer', CASES, ids=repr)
def test_the_papers_equations(mixer):
  """Output and final state; the parallel form starts from m = -inf, which differs by eps alone."""
  params, x = setup(mixer)
  with jax.enable_x64(True):
    y, state = jax.jit(mixer.apply)(params, x, mixer.init_state(WIDTH, 2, TIME))
  narrow, _ = mixer.apply(jax.tree.map(jnp.float32, params), jnp.float32(x))
  for row in range(2):
    expected, c, n, m = recurrent(mixer, params, x[row])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(y[row], expected, atol=1e-12 * scale)
    np.testing.assert_allclose(narrow[row], expected, atol=2e-4 * scale)       # the norm divides by what may be small
    np.testing.assert_allclose(state['memory'][row], np.concatenate([c, n[..., None]], axis=-1), atol=1e-12)
    np.testing.assert_allclose(state['stabiliser'][row], m, atol=1e-12)
    np.testing.assert_allclose(parallel(mixer, params, x[row]), expected, atol=1e-3 * scale)


def test_gradient_is_the_true_one():
  """Also through the stabiliser, which eps alone lets through, and that only where the norm does not undo it: finite differences."""
  mixer = MLSTM(heads=2, head_dim=4, input_bias=1.0, eps=0.5, norm_eps=1.0)
  params, x = setup(mixer, 3)
  weights = np.random.default_rng(4).normal(size=(2, TIME, WIDTH))
  loss = lambda p: sum((weights[row] * recurrent(mixer, p, x[row])[0]).sum() for row in range(2))
  with jax.enable_x64(True):
    gradient = jax.grad(lambda p: jnp.sum(weights * mixer.apply(p, x)[0]))(params)
  for name in ('b_i', 'b_f', 'w_i', 'w_f', 'w_q', 'w_k'):
    at = (0,) * params[name].ndim
    ends = []
    for step in (1e-6, -1e-6):
      moved = params[name].copy()
      moved[at] += step
      ends.append(loss(params | {name: moved}))
    np.testing.assert_allclose(gradient[name][at], (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-7)


def test_the_authors_start():
  """Gates: weights 0, biases -10 and 3 .. 6; q, k, v: small init; W_o: Wang's, by the number of blocks."""
  mixer, width = MLSTM(heads=4, head_dim=32), 256
  params = init(jax.random.key(0), mixer.params(width))
  assert not any(np.asarray(params[name]).any() for name in ('w_i', 'w_f', 'w_g'))
  np.testing.assert_array_equal(params['b_i'], -10 * np.ones(4))
  np.testing.assert_allclose(params['b_f'], [3, 4, 5, 6])
  assert (np.asarray(params['norm_scale']) == 1).all()
  for name in 'qkv':
    np.testing.assert_allclose(np.std(params[f'w_{name}']), np.sqrt(2 / (5 * width)), rtol=0.02)
  deep = init(jax.random.key(0), stack(mixer.params(width), 8))
  np.testing.assert_allclose(np.std(deep['w_o']), 2 / 8 / np.sqrt(width), rtol=0.02)
  np.testing.assert_allclose(np.std(mixer.params(width)['w_o'].init(jax.random.key(1), (256, width), Layer(0, 32))), 2 / 32 / 16, rtol=0.02)
  assert {name for name, p in mixer.params(width).items() if p.full_precision} == {'b_i', 'b_f'}
  assert {name for name, p in mixer.params(width).items() if not p.weight_decay} == {'b_i', 'b_f', 'norm_scale'}


def test_the_7b_layers_shapes():
  """xLSTM 7B: 8 heads of 256 keys and 512 values at width 4096; state 8 x 256 x (512 + 1) and 8 stabilisers."""
  mixer = MLSTM(heads=8, head_dim=256)
  assert mixer.params(4096)['w_v'].shape == (4096, 4096) and mixer.params(4096)['w_q'].shape == (4096, 2048)
  state = jax.eval_shape(lambda: mixer.init_state(4096, 1, 8))
  assert state['memory'].shape == (1, 8, 256, 513) and state['stabiliser'].shape == (1, 8)


def test_gradients_of_short_inputs_are_no_noisier_than_products_of_scores():
  """float32 against float64 over 200 draws of 16 tokens, mean of the largest errors: 4e-6, and 1.2e-5 by a loop over tokens."""
  mixer, draws = MLSTM(heads=2, head_dim=8), 200
  random = np.random.default_rng(0)
  scale = lambda p: 0.2 if p.ndim == 1 else p.shape[0] ** -0.5
  params = {name: scale(p) * random.normal(size=(draws, *p.shape)) + (name == 'norm_scale')
            for name, p in init(jax.random.key(0), mixer.params(32)).items()}
  given = jax.tree.map(np.float32, (params, random.normal(size=(draws, 2, 16, 32)), random.normal(size=(draws, 2, 16, 32))))
  gradient = jax.jit(jax.vmap(jax.grad(lambda p, x, weights: jnp.sum(mixer.apply(p, x)[0] * weights))))
  mine = gradient(*given)
  with jax.enable_x64(True):
    true = jax.tree.map(np.asarray, gradient(*jax.tree.map(np.float64, given)))
  for name in ('w_q', 'w_k'):
    over = lambda x: np.abs(x).max(axis=(1, 2))
    error = over(np.asarray(mine[name]) - true[name]) / over(true[name])
    assert error.mean() < 7e-6, (name, error.mean())
