"""The selective scan's forms give the definition's outputs, states and gradients, over documents, padding and split calls."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.ops.selective_scan import selective_scan

BATCH, INNER, STATE = 2, 5, 3


def arguments(length, dtype=jnp.float64, scale=1.0):
  """u, dt, a, b, c, initial; scale: of the exponents dt a."""
  keys = jax.random.split(jax.random.key(0), 6)
  normal = lambda i, shape: jax.random.normal(keys[i], shape, dtype)
  dt = jax.nn.softplus(normal(1, (BATCH, length, INNER)))
  return (normal(0, dt.shape), dt, -scale * jnp.exp(normal(2, (INNER, STATE))), normal(3, (BATCH, length, STATE)),
          normal(4, (BATCH, length, STATE)), normal(5, (BATCH, INNER, STATE)))


def layouts(length):
  """One document; documents that begin anywhere; the same with padding on the left, on the right and inside, and a row of padding."""
  one = np.ones((BATCH, length), np.int32)
  many = one.copy()
  for document, start in enumerate((0, 1, 2, 5, 6, length // 2, length - 1)):
    many[0, start:] = document + 1
  padded = many.copy()
  padded[0, :3] = padded[0, -4:] = padded[:, length // 3:length // 3 + 2] = 0
  padded[1] = 0
  return None, one, many, padded


def definition(u, dt, a, b, c, state, ids):
  """The equations, one token and row at a time."""
  y, last = np.zeros(u.shape), np.array(state)
  for row in range(u.shape[0]):
    seen = None
    for t in range(u.shape[1]):
      document = 1 if ids is None else ids[row, t]
      if document:
        if seen is not None and document != (1 if ids is None else ids[row, t - 1]):
          last[row] = 0
        last[row] = np.exp(dt[row, t][:, None] * a) * last[row] + np.outer(dt[row, t] * u[row, t], b[row, t])
        seen = document
      y[row, t] = last[row] @ c[row, t]
  return y, last


@functools.partial(jax.jit, static_argnames='form')
def compute(arrays, segment_ids, form):
  def loss(arrays):
    y, last = selective_scan(*arrays, segment_ids, form)
    weigh = lambda x: jnp.sum(x * np.cos(np.arange(x.size) ** 2.0).reshape(x.shape))
    return weigh(y) + weigh(last ** 2), (y, last)
  gradient, results = jax.grad(loss, has_aux=True)(arrays)
  return results, gradient


@pytest.mark.parametrize('length', (2, 16, 17, 48))
def test_recomputed_equals_the_definition(length):
  with jax.enable_x64(True):
    for ids in layouts(length):
      arrays = arguments(length)
      results = compute(arrays, ids, 'recomputed')[0]
      for x, y in zip(results, definition(*(np.asarray(x) for x in arrays), ids)):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('length', (1, 2, 17, 50))
@pytest.mark.parametrize('scale', (1e-9, 1.0, 1e4))
def test_gradients_of_the_forms_agree(length, scale):
  with jax.enable_x64(True):
    for ids in layouts(length):
      arrays = arguments(length, scale=scale)
      got, expected = (compute(arrays, ids, form) for form in ('recomputed', 'materialised'))
      chex.assert_tree_all_finite(got)
      check = lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-11 * float(np.max(np.abs(y))) + 1e-30)
      jax.tree.map(check, got, expected)


def test_gradient_against_finite_differences():
  with jax.enable_x64(True):
    arrays = arguments(19)
    loss = jax.jit(lambda arrays: jnp.sum(jnp.sin(selective_scan(*arrays, layouts(19)[2], 'recomputed')[0])))
    gradient = jax.grad(loss)(arrays)
    direction = jax.tree.map(lambda x: jax.random.normal(jax.random.key(7), x.shape, x.dtype), arrays)
    shifted = lambda step: loss(jax.tree.map(lambda x, y: x + step * y, arrays, direction))
    slope = sum(jnp.vdot(x, y) for x, y in zip(gradient, direction))
    np.testing.assert_allclose((shifted(2e-6) - shifted(-2e-6)) / 4e-6, slope, rtol=1e-7)


def test_split_into_calls_equals_whole():
  with jax.enable_x64(True):
    *tokens, state = arguments(50)
    whole = selective_scan(*tokens, state, implementation='recomputed')
    parts = []
    for begin, end in ((0, 20), (20, 21), (21, 50)):
      u, dt, b, c = (x[:, begin:end] for x in (tokens[0], tokens[1], tokens[3], tokens[4]))
      y, state = selective_scan(u, dt, tokens[2], b, c, state)
      parts.append(y)
    chex.assert_trees_all_close((jnp.concatenate(parts, axis=1), state), whole, rtol=1e-12, atol=1e-12)


def test_float32_in_training_sizes():
  arrays = arguments(300, jnp.float32)
  with jax.enable_x64(True):
    expected = compute(tuple(x.astype(jnp.float64) for x in arrays), layouts(300)[3], 'materialised')
  got = compute(arrays, layouts(300)[3], 'recomputed')
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(got))
  check = lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * float(np.max(np.abs(y))) + 1e-30)
  jax.tree.map(check, got, expected)


def test_bfloat16_is_computed_in_float32():
  arrays = [x.astype(jnp.bfloat16) for x in arguments(40, jnp.float32)]
  results = selective_scan(*arrays)
  chex.assert_trees_all_equal(results, selective_scan(*(x.astype(jnp.float32) for x in arrays)))
  assert all(x.dtype == jnp.float32 for x in results)


def test_one_token_is_one_update_without_a_loop():
  text = str(jax.make_jaxpr(selective_scan)(*arguments(1, jnp.float32)))
  assert 'scan' not in text and 'while' not in text


def test_training_holds_no_array_of_all_states():
  length = 160
  text = str(jax.make_jaxpr(jax.grad(lambda arrays: jnp.sum(selective_scan(*arrays, implementation='recomputed')[0])))(arguments(length, jnp.float32)))
  assert f'f32[{length},{BATCH},{STATE},{INNER}]' not in text and f'f32[{BATCH},{length},{INNER},{STATE}]' not in text
  assert f'f32[{length // 16},{BATCH},{STATE},{INNER}]' in text


@pytest.mark.parametrize('form', ('auto', 'recomputed', 'materialised'))
def test_no_tokens(form):
  *arrays, initial = arguments(0, jnp.float32)
  y, last = selective_scan(*arrays, initial, implementation=form)
  assert y.shape == arrays[0].shape
  chex.assert_trees_all_equal(last, initial)


@pytest.mark.parametrize('change, message', (
    (dict(implementation='fast'), 'auto, materialised, recomputed'),
    (dict(u=np.zeros((2, 9))), r'u has shape \(2, 9\); expected \[batch, time, inner\]'),
    (dict(a=np.zeros(5)), r'a has shape \(5,\); expected \[inner, state\]'),
    (dict(dt=np.zeros((2, 9, 1))), r'dt has shape \(2, 9, 1\); expected \[batch, time, inner\] = \(2, 9, 5\)'),
    (dict(c=np.zeros((2, 9, 4))), r'c has shape \(2, 9, 4\); expected \[batch, time, state\] = \(2, 9, 3\)'),
    (dict(initial=np.zeros((2, 3, 5))), r'initial has shape \(2, 3, 5\); expected \[batch, inner, state\] = \(2, 5, 3\)'),
    (dict(segment_ids=np.zeros((2, 8), np.int32)), 'segment_ids has shape'),
))
def test_errors_name_the_argument(change, message):
  names = ('u', 'dt', 'a', 'b', 'c', 'initial')
  with pytest.raises(ValueError, match=message):
    selective_scan(**(dict(zip(names, arguments(9, jnp.float32))) | change))
