"""sLSTM's loop against the paper's equations without a stabiliser, in float64: outputs, final state and every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.ops.slstm_recurrence import State, slstm_recurrence

BATCH, HEADS, SIZE = 2, 2, 3


def arguments(length, scale=1.0):
  draw = np.random.default_rng(length)
  c, m = draw.normal(size=(2, BATCH, HEADS, SIZE))
  h, n = draw.normal(size=(BATCH, HEADS, SIZE)), np.exp(draw.normal(size=(BATCH, HEADS, SIZE)))
  return scale * draw.normal(size=(BATCH, length, 4, HEADS, SIZE)), draw.normal(size=(HEADS, SIZE, 4, SIZE)), State(h, c, n, m)


def layouts(length):
  """No documents; several with padding on the left, inside and on the right; a row of padding."""
  many = np.ones((BATCH, length), np.int32)
  for document, begin in enumerate((1, 2, 5, length // 2)):
    many[0, begin:] = document + 2
  many[0, :3] = many[0, -2:] = many[0, length // 3] = 0
  empty = np.ones_like(many)
  empty[1] = 0
  return None, many, empty


def definition(gates, recurrent, state, ids, exponential):
  """(h, last h, c and n not divided by e^m): eq. 8-14, row by row; a fresh state is h = c = n = 0."""
  outputs, last = [], []
  for row in range(BATCH):
    h, c, n = state.h[row], state.c[row] * jnp.exp(state.m[row]), state.n[row] * jnp.exp(state.m[row])
    seen, documents, left = [], 0, 0
    for t in range(gates.shape[1]):
      here = 1 if ids is None else ids[row, t]
      if not here:
        left = here
        seen.append(jnp.zeros((HEADS, SIZE)))
        continue
      documents += here != left
      if here != left and documents > 1:
        h, c, n = jnp.zeros((3, HEADS, SIZE))
      left = here
      i, f, z, o = (gates[row, t, g] + jnp.einsum('hi,hij->hj', h, recurrent[:, :, g]) for g in range(4))
      forget = jnp.exp(f) if exponential else 1 / (1 + jnp.exp(-f))
      c, n = forget * c + jnp.exp(i) * jnp.tanh(z), forget * n + jnp.exp(i)
      h = c / n / (1 + jnp.exp(-o))
      seen.append(h)
    outputs.append(jnp.stack(seen))
    last.append(jnp.stack([h, c, n]))
  return jnp.stack(outputs), jnp.stack(last)


def with_gradients(function, given):
  def loss(*given):
    results = function(*given)
    return sum(jnp.sum(x * jnp.cos(jnp.arange(x.size) ** 2.0).reshape(x.shape)) for x in results), results
  gradients, results = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*given)
  return results, gradients[:2], gradients[2]._replace(m=0)


@pytest.mark.parametrize('exponential', [False, True])
@pytest.mark.parametrize('length', (1, 14))
def test_definition(length, exponential):
  def ours(gates, recurrent, state):
    h, last = slstm_recurrence(gates, recurrent, state, ids, exponential)
    scale = jnp.exp(last.m)
    return h, jnp.stack([last.h, last.c * scale, last.n * scale], axis=1)
  with jax.enable_x64(True):
    given = arguments(length)
    for ids in layouts(length):
      mine = with_gradients(ours, given)
      theirs = with_gradients(lambda *g: definition(*g, ids, exponential), given)
      for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize('exponential', [False, True])
def test_float32_at_extreme_gates(exponential):
  """Pre-activations of N(0, 30^2): nothing overflows, values as in float64; and from an empty state whose stabiliser is anything."""
  gates, recurrent, _ = arguments(40, scale=30.0)
  narrow = jnp.asarray(gates, jnp.float32), jnp.asarray(recurrent, jnp.float32)
  h, last = slstm_recurrence(*narrow, exponential_forget=exponential)
  d_gates = jax.grad(lambda gates: jnp.sum(slstm_recurrence(gates, narrow[1], exponential_forget=exponential)[0] ** 2))(narrow[0])
  assert all(np.isfinite(x).all() for x in (h, *last, d_gates))
  zeros = jnp.zeros((BATCH, HEADS, SIZE))
  np.testing.assert_array_equal(slstm_recurrence(*narrow, State(zeros, zeros, zeros, zeros - 500.0), exponential_forget=exponential)[0], h)
  with jax.enable_x64(True):
    wide, _ = slstm_recurrence(jnp.asarray(narrow[0], jnp.float64), jnp.asarray(narrow[1], jnp.float64), exponential_forget=exponential)
  np.testing.assert_allclose(h, wide, atol=1e-3)


def test_any_split_dtypes_and_no_tokens():
  gates, recurrent, _ = (jnp.asarray(x, jnp.bfloat16) if isinstance(x, np.ndarray) else x for x in arguments(13))
  whole, last = slstm_recurrence(gates, recurrent)
  assert whole.dtype == jnp.bfloat16 and all(x.dtype == jnp.float32 for x in last)
  state, parts = None, []
  for begin, end in ((0, 6), (6, 7), (7, 7), (7, 13)):
    h, state = slstm_recurrence(gates[:, begin:end], recurrent, state)
    parts.append(h)
  np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
  for a, b in zip(state, last):
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize('change, message', [
    (dict(gates=jnp.zeros((2, 5, 3, 2, 3))), r'gates has shape .* expected \[batch, time, 4, heads, head_dim\]'),
    (dict(recurrent=jnp.zeros((2, 3, 3, 4))), 'recurrent has shape'), (dict(segment_ids=jnp.zeros((2, 4), jnp.int32)), 'segment_ids has shape'),
    (dict(initial=State(*(jnp.zeros((2, 2, size)) for size in (3, 3, 3, 1)))), 'initial.m has shape')])
def test_refused(change, message):
  given = dict(gates=jnp.zeros((2, 5, 4, 2, 3)), recurrent=jnp.zeros((2, 3, 4, 3)))
  with pytest.raises(ValueError, match=message):
    slstm_recurrence(**given | change)
