"""The stabiliser against its definition, a loop in float64, and against what it must not change: the recurrence that it divides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.ops.stabilised_gates import stabilised_gates

FORMS = ('associative', 'sequential')
BATCH, HEADS = 2, 3


def arguments(length):
  draw = np.random.default_rng(length)
  shape = (BATCH, length, HEADS)
  return -np.abs(draw.normal(0, 3, shape)), draw.normal(0, 5, shape), draw.normal(0, 5, (BATCH, HEADS))


def layouts(length):
  """No documents; one; several with padding on the left, inside and on the right, and a row of padding."""
  many = np.ones((BATCH, length), np.int32)
  for document, begin in enumerate((1, 2, 5, length // 2)):
    many[0, begin:] = document + 2
  many[0, :3] = many[0, -2:] = many[0, length // 3] = 0
  empty = np.ones_like(many)
  empty[1] = 0
  return None, np.ones_like(many), many, empty


def definition(forget, write, initial, ids):
  """(log decay, log write, m, last), token by token; ids None is one document."""
  decay, inputs, seen = np.zeros_like(forget), np.zeros_like(write), np.zeros_like(write)
  last = initial.copy()
  for row in range(BATCH):
    m, document, left = initial[row], 0, 0
    for t in range(forget.shape[1]):
      here = 1 if ids is None else ids[row, t]
      if here:
        begins = here != left
        document += begins
        before = np.zeros(HEADS) if begins and document > 1 else m
        m = np.maximum(forget[row, t] + before, write[row, t])
        decay[row, t] = forget[row, t] + before - m
      inputs[row, t], seen[row, t], left = write[row, t] - m, m, here
    last[row] = m
  return decay, inputs, seen, last


@functools.partial(jax.jit, static_argnames='form')
def run(forget, write, initial, ids, form):
  return stabilised_gates(forget, write, initial, ids, form)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('length', (1, 7, 20))
def test_definition(length, form):
  with jax.enable_x64(True):
    given = arguments(length)
    for ids in layouts(length):
      real = np.ones((BATCH, length), bool) if ids is None else ids != 0
      decay, write, m, last = run(*given, ids, form)
      expected = definition(*given, ids)
      np.testing.assert_allclose(decay, expected[0], atol=1e-12)
      np.testing.assert_allclose(np.asarray(write)[real], expected[1][real], atol=1e-12)      # padding's write is nobody's
      np.testing.assert_allclose(np.asarray(m)[real], expected[2][real], atol=1e-12)
      np.testing.assert_allclose(last, expected[3], atol=1e-12)


@pytest.mark.parametrize('form', FORMS)
def test_what_the_stabiliser_divides_stays(form):
  """e^m times the stabilised sum of writes is the plain sum, values and gradients by both gates and m[-1]."""
  with jax.enable_x64(True):
    forget, write, initial = arguments(14)
    ids = layouts(14)[2]
    begins = (ids != 0) & (ids != np.pad(ids[:, :-1], ((0, 0), (1, 0))))
    cut = begins & (np.cumsum(begins, axis=1) > 1)
    weights = np.random.default_rng(1).normal(size=(BATCH, 14, HEADS)) * (ids != 0)[..., None]

    def sums(decay, inputs, start):
      total, seen = start, []
      for t in range(14):
        real, begin = (ids[:, t] != 0)[:, None], cut[:, t][:, None]
        total = jnp.where(real, jnp.exp(decay[:, t]) * jnp.where(begin, 0, total) + jnp.exp(inputs[:, t]), total)
        seen.append(total)
      return jnp.stack(seen, axis=1)

    def plain(forget, write, initial):
      return jnp.sum(weights * jnp.log(sums(forget, write, jnp.exp(initial))))

    def stabilised(forget, write, initial):
      decay, inputs, m, _ = stabilised_gates(forget, write, initial, ids, form)
      return jnp.sum(weights * (jnp.log(sums(decay, inputs, jnp.ones_like(initial))) + jax.lax.stop_gradient(m)))
    value, gradient = jax.value_and_grad(plain, argnums=(0, 1))(forget, write, initial)
    other, same = jax.value_and_grad(stabilised, argnums=(0, 1))(forget, write, initial)
  np.testing.assert_allclose(other, value, rtol=1e-12)
  for a, b in zip(same, gradient):
    np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize('form', FORMS)
def test_derivative_of_the_maximum(form):
  """That of m[t] goes to the gate that was the larger, at every step."""
  with jax.enable_x64(True):
    forget, write, initial = arguments(14)
    ids = layouts(14)[2]
    weights = np.random.default_rng(2).normal(size=(BATCH, 14, HEADS)) * (ids != 0)[..., None]
    loss = lambda forget, write, initial: float((weights * definition(forget, write, initial, ids)[2]).sum())
    mine = jax.grad(lambda *given: jnp.sum(weights * stabilised_gates(*given, ids, form)[2]), argnums=(0, 1, 2))(forget, write, initial)
    for which, gradient in enumerate(mine):
      given, at = [forget, write, initial], (0, 5, 1) if which < 2 else (0, 1)
      ends = []
      for step in (1e-6, -1e-6):
        moved = given[which].copy()
        moved[at] += step
        ends.append(loss(*given[:which], moved, *given[which + 1:]))
      np.testing.assert_allclose(gradient[at], (ends[0] - ends[1]) / 2e-6, atol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in mine)


def test_any_split_float32_and_no_tokens():
  forget, write, _ = (jnp.asarray(x, jnp.bfloat16) for x in arguments(13))
  whole = stabilised_gates(forget, write)
  assert all(x.dtype == jnp.float32 for x in whole) and float(whole[0].max()) <= 0 and float(whole[1].max()) <= 0
  state, parts = None, []
  for begin, end in ((0, 6), (6, 7), (7, 7), (7, 13)):
    *part, state = stabilised_gates(forget[:, begin:end], write[:, begin:end], state)
    parts.append(part)
  for index in range(3):
    np.testing.assert_allclose(np.concatenate([part[index] for part in parts], axis=1), whole[index], atol=1e-5)
  np.testing.assert_allclose(state, whole[3], atol=1e-5)


@pytest.mark.parametrize('change, message', [
    (dict(implementation='fast'), "'fast' is not one of auto, associative, sequential"),
    (dict(log_forget=jnp.zeros((2, 4, 1))), 'log_forget has shape'), (dict(initial=jnp.zeros((2,))), 'initial has shape'),
    (dict(log_input=jnp.zeros((2, 4))), r'expected \[batch, time, heads\]'), (dict(segment_ids=jnp.zeros((2, 5), jnp.int32)), 'segment_ids has shape')])
def test_refused(change, message):
  given = dict(log_forget=jnp.zeros((2, 4, 3)), log_input=jnp.zeros((2, 4, 3)))
  with pytest.raises(ValueError, match=message):
    stabilised_gates(**given | change)
