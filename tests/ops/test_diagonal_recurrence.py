"""Every form of the elementwise recurrence gives the definition's states and gradients, real and complex, from either side."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.ops import diagonal_recurrence

FORMS = ('associative', 'blocked')
BATCH, WIDTH = 2, 3


def arguments(length, is_complex, decay_shape=None, dtype=jnp.float64):
  keys = jax.random.split(jax.random.key(0), 6)
  normal = lambda i, shape: jax.random.normal(keys[i], shape, dtype)
  shape = (BATCH, length, WIDTH)
  a, b, initial = jax.nn.sigmoid(normal(0, decay_shape or shape)), normal(1, shape), normal(2, (BATCH, WIDTH))
  if is_complex:
    a = a * jnp.exp(1j * normal(3, a.shape))
    b, initial = b + 1j * normal(4, b.shape), initial + 1j * normal(5, initial.shape)
  return a, b, initial


def layouts(length):
  """Documents that begin anywhere, with padding on the left, on the right and inside."""
  one = np.ones((BATCH, length), np.int32)
  many = one.copy()
  for document, start in enumerate((0, 1, 2, 5, 6, length // 2, length - 1)):
    many[0, start:] = document + 1
  padded = many.copy()
  padded[0, :3] = padded[1, -4:] = padded[:, length // 3:length // 3 + 2] = 0
  return one, many, padded


@functools.partial(jax.jit, static_argnames=('reverse', 'form'))
def compute(a, b, initial, segment_ids, reverse, form):
  def loss(a, b, initial):
    h, last = diagonal_recurrence(a, b, initial, segment_ids, reverse, form)
    weigh = lambda x: jnp.sum(jnp.real(x) * np.cos(np.arange(x.size) ** 2.0).reshape(x.shape) + jnp.sin(3 * jnp.imag(x)))
    return weigh(h) + weigh(last), (h, last)
  gradient, results = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(a, b, initial)
  return *results, *gradient


def assert_close(results, expected, relative):
  check = lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=relative * float(jnp.max(jnp.abs(y))) + 1e-30)
  jax.tree.map(check, results, expected)


@pytest.mark.parametrize('length, is_complex, decay_shape, reverse', (
    (1, False, None, False), (7, False, None, True), (600, False, None, False), (263, True, (WIDTH,), True), (300, False, (BATCH, 300, 1), True)))
def test_forms_agree(length, is_complex, decay_shape, reverse):
  with jax.enable_x64(True):
    a, b, initial = arguments(length, is_complex, decay_shape)
    for decay in (a, a**0.001, a * 1e-13, jnp.zeros_like(a)):
      for ids in layouts(length):
        expected = compute(decay, b, initial, ids, reverse, 'sequential')
        chex.assert_tree_all_finite(expected)
        for form in FORMS:
          assert_close(compute(decay, b, initial, ids, reverse, form), expected, 1e-11)


@pytest.mark.parametrize('reverse', (False, True))
def test_definition_in_numpy(reverse):
  with jax.enable_x64(True):
    a, b, initial = arguments(40, True)
    ids = layouts(40)[2]
    h, last = diagonal_recurrence(a, b, initial, ids, reverse, 'sequential')
  a, b, initial, h, last = (np.asarray(x) for x in (a, b, initial, h, last))
  if reverse:
    a, b, ids, h = (np.flip(x, 1) for x in (a, b, ids, h))
  for row in range(BATCH):
    state, seen = initial[row], False
    for t in range(40):
      if ids[row, t]:
        begins = seen and ids[row, t] != ids[row, t - 1]
        state, seen = (0 if begins else a[row, t] * state) + b[row, t], True
      np.testing.assert_allclose(h[row, t], state, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(last[row], state, rtol=1e-12, atol=1e-13)


def test_gradient_against_finite_differences():
  with jax.enable_x64(True):
    arrays = arguments(6, False)
    loss = lambda arrays: jnp.sum(jnp.sin(diagonal_recurrence(*arrays, implementation='sequential')[0]))
    gradient = jax.grad(loss)(arrays)
    direction = jax.tree.map(lambda x: jax.random.normal(jax.random.key(7), x.shape, x.dtype), arrays)
    shifted = lambda step: loss(jax.tree.map(lambda x, y: x + step * y, arrays, direction))
    slope = sum(jnp.vdot(x, y) for x, y in zip(gradient, direction))
    np.testing.assert_allclose((shifted(1e-5) - shifted(-1e-5)) / 2e-5, slope, rtol=1e-8)


def test_split_into_calls_equals_whole():
  with jax.enable_x64(True):
    a, b, state = arguments(50, True)
    whole = jax.jit(functools.partial(diagonal_recurrence, implementation='associative'))(a, b, state)
    parts = []
    for begin, end in ((0, 20), (20, 21), (21, 50)):
      h, state = diagonal_recurrence(a[:, begin:end], b[:, begin:end], state)
      parts.append(h)
    assert_close((jnp.concatenate(parts, axis=1), state), whole, 1e-13)


@pytest.mark.parametrize('form', ('sequential', 'associative'))
def test_pairs_are_complex_numbers(form):
  a, b, initial = arguments(9, True, dtype=jnp.float32)
  pair = lambda x: (x.real, x.imag)
  run = jax.jit(functools.partial(diagonal_recurrence, implementation=form))
  chex.assert_trees_all_close(run(pair(a), pair(b), pair(initial)), jax.tree.map(pair, run(a, b, initial)), rtol=1e-6, atol=1e-6)
  mixed = run(a.real, pair(b))
  chex.assert_trees_all_close(mixed[0][1], run(a.real, b.imag)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('form', ('sequential', *FORMS))
def test_bfloat16_keeps_its_state_in_float32(form):
  a, b, initial = (x.astype(jnp.bfloat16) for x in arguments(300, False, dtype=jnp.float32))
  h, last = jax.jit(functools.partial(diagonal_recurrence, implementation=form))(a, b, initial)
  assert h.dtype == jnp.bfloat16 and last.dtype == jnp.float32
  expected = diagonal_recurrence(*(x.astype(jnp.float32) for x in (a, b, initial)), implementation='sequential')
  chex.assert_trees_all_close((h.astype(jnp.float32), last), expected, rtol=1e-2, atol=1e-2)


def test_one_token_is_one_update_without_a_loop():
  text = str(jax.make_jaxpr(diagonal_recurrence)(*arguments(1, True, dtype=jnp.float32)))
  assert 'scan' not in text and 'while' not in text


def test_no_tokens():
  a, b, initial = arguments(0, False, dtype=jnp.float32)
  h, last = diagonal_recurrence(a, b, initial)
  assert h.shape == b.shape
  chex.assert_trees_all_equal(last, initial)


@pytest.mark.parametrize('change, message', (
    (dict(implementation='fast'), 'auto, associative, blocked, sequential'),
    (dict(a=np.zeros((2, 9, 4))), r'a has shape \(2, 9, 4\); expected one that broadcasts to b'),
    (dict(b=np.zeros(9)), r'b has shape \(9,\); expected \[batch, time, ...\]'),
    (dict(initial=np.zeros((3, 2))), r'initial has shape \(3, 2\); expected \[batch, ...\]'),
    (dict(segment_ids=np.zeros((2, 8), np.int32)), 'segment_ids has shape'),
))
def test_errors_name_the_argument(change, message):
  a, b, initial = arguments(9, False, dtype=jnp.float32)
  with pytest.raises(ValueError, match=message):
    diagonal_recurrence(**(dict(a=a, b=b, initial=initial) | change))
