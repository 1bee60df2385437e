"""RWKV-4's weighted average against its definition, a softmax over all earlier tokens of the document, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.ops.max_stabilised import weighted_average

FORMS = ('associative', 'sequential')
BATCH, CHANNELS = 2, 3


def arguments(length, keys=3.0):
  draw = jax.random.split(jax.random.key(length), 7)
  normal = lambda i, shape: jax.random.normal(draw[i], shape, jnp.result_type(float))
  k, v = keys * normal(0, (BATCH, length, CHANNELS)), normal(1, (BATCH, length, CHANNELS))
  log_decay = -jnp.exp(jnp.linspace(-6.0, 3.0, CHANNELS))
  state = normal(2, (BATCH, CHANNELS)), jnp.exp(normal(3, (BATCH, CHANNELS))), keys * normal(4, (BATCH, CHANNELS))
  return k, v, log_decay, normal(5, (CHANNELS,)), state


def layouts(length):
  """One document; documents that begin anywhere; the same with padding on the left, inside and on the right; a row of padding."""
  one = np.ones((BATCH, length), np.int32)
  many = one.copy()
  for document, begin in enumerate((1, 2, 5, length // 2)):
    many[0, begin:] = document + 2
  padded = many.copy()
  padded[0, :3] = padded[1, -4:] = padded[:, length // 3:length // 3 + 2] = 0
  empty = many.copy()
  empty[1] = 0
  return one, many, padded, empty


def definition(k, v, log_decay, bonus, state, ids):
  """(wkv, numerator / denominator of the final state, log of its denominator) as one softmax over sources: the state, then the tokens."""
  length = k.shape[1]
  real = ids != 0
  begins = real & (ids != np.pad(ids[:, :-1], ((0, 0), (1, 0))))
  document = np.maximum(np.cumsum(begins, axis=1), 1)                # 1 is the state's
  after = np.cumsum(real, axis=1)                                    # real tokens up to and with this one
  source = lambda state, tokens: np.pad(tokens, ((0, 0), (1, 0)), constant_values=state)
  reader = lambda tokens, end: np.concatenate([tokens, end], axis=1)
  source_after, source_document, source_real = source(0, after), source(1, document), source(True, real)
  reader_before, reader_document = reader(after - real, after[:, -1:]), reader(document, document[:, -1:])
  earlier = np.arange(length + 1)[:, None] >= np.arange(length + 1)   # source s is the token s - 1
  seen = earlier & (reader_document[:, :, None] == source_document[:, None]) & source_real[:, None]
  steps = np.where(seen, reader_before[:, :, None] - source_after[:, None], 0)
  numerator, denominator, exponent = state
  exponents = jnp.concatenate([(jnp.log(denominator) + exponent)[:, None], k], axis=1)
  values = jnp.concatenate([(numerator / denominator)[:, None], v], axis=1)
  past = jnp.where(seen[..., None], exponents[:, None] + steps[..., None] * log_decay, -1e300)
  logits = jnp.concatenate([past[:, :-1], (bonus + k)[:, :, None]], axis=2)
  both = jnp.concatenate([jnp.broadcast_to(values[:, None], (*past[:, :-1].shape,)), v[:, :, None]], axis=2)
  wkv = jnp.sum(jax.nn.softmax(logits, axis=2) * both, axis=2) * real[..., None]
  return wkv, jnp.sum(jax.nn.softmax(past[:, -1], axis=1) * values, axis=1), jax.nn.logsumexp(past[:, -1], axis=1)


def ours(k, v, log_decay, bonus, state, ids, form):
  wkv, (numerator, denominator, exponent) = weighted_average(k, v, log_decay, bonus, state, ids, form)
  return wkv, numerator / denominator, exponent + jnp.log(denominator)


def with_gradients(function, given):
  def loss(*given):
    results = function(*given)
    return sum(jnp.sum(x * jnp.cos(jnp.arange(x.size) ** 2.0).reshape(x.shape)) for x in results), results
  gradients, results = jax.grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True)(*given)
  return jax.tree.leaves((results, gradients))


@functools.partial(jax.jit, static_argnames='form')
def our_gradients(given, ids, form):
  return with_gradients(functools.partial(ours, ids=ids, form=form), given)


def assert_close(results, expected, relative):
  for x, y in zip(results, expected, strict=True):
    assert np.isfinite(x).all()
    np.testing.assert_allclose(x, y, rtol=0, atol=relative * max(float(np.abs(y).max()), 1e-3))


@pytest.mark.parametrize('length', (1, 7, 20))
def test_definition(length):
  """Outputs, final state and every gradient, for both forms and every layout."""
  with jax.enable_x64(True):
    given = arguments(length)
    for ids in layouts(length):
      expected = with_gradients(functools.partial(definition, ids=ids), given)
      for form in FORMS:
        assert_close(our_gradients(given, ids, form), expected, 1e-10)


@pytest.mark.parametrize('form', FORMS)
def test_float32_at_extreme_keys(form):
  """Keys of N(0, 30^2), decays of e^-6 .. e^3 per step, 120 tokens: as the definition in float64, nothing overflows."""
  with jax.enable_x64(True):
    wide = arguments(120, keys=30.0)
    ids = layouts(120)[2]
    expected = with_gradients(functools.partial(definition, ids=ids), wide)
    results = our_gradients(jax.tree.map(lambda x: x.astype(jnp.float32), wide), ids, form)
  assert results[0].dtype == np.float32
  assert_close(results[:3], expected[:3], 2e-5)
  assert_close(results[3:], expected[3:], 1e-3)               # weights are exponentials of sums of size 100: 1e-5 each


@pytest.mark.parametrize('form', FORMS)
def test_any_split_and_the_empty_state(form):
  k, v, log_decay, bonus, _ = arguments(13)
  run = jax.jit(functools.partial(weighted_average, implementation=form))
  whole, last = run(k, v, log_decay, bonus)
  state = tuple(jnp.zeros((BATCH, CHANNELS)) for _ in range(3))
  fresh, same = run(k, v, log_decay, bonus, (*state[:2], state[2] + 50.0), jnp.ones((BATCH, 13), jnp.int32))  # no sums: no exponent either
  assert_close((fresh, *same), (whole, *last), 1e-6)
  parts = []
  for begin, end in ((0, 6), (6, 7), (7, 13)):
    y, state = run(k[:, begin:end], v[:, begin:end], log_decay, bonus, state)
    parts.append(y)
  assert_close((jnp.concatenate(parts, axis=1), state[0] / state[1]), (whole, last[0] / last[1]), 1e-5)
  zeros = jnp.zeros((BATCH, 13), jnp.int32)
  assert not any(np.asarray(x).any() for x in run(k, v, log_decay, bonus, None, zeros)[1])
  assert_close(run(k, v, log_decay, bonus, last, zeros)[1], last, 1e-7)


def test_bfloat16_and_no_tokens():
  k, v, log_decay, bonus, _ = arguments(5)
  wkv, state = weighted_average(k.astype(jnp.bfloat16), v.astype(jnp.bfloat16), log_decay, bonus)
  assert wkv.dtype == jnp.bfloat16 and {x.dtype for x in state} == {jnp.dtype(jnp.float32)}
  same, after = weighted_average(k[:, :0], v[:, :0], log_decay, bonus, state)
  assert same.shape == (BATCH, 0, CHANNELS) and all((x == y).all() for x, y in zip(after, state))


def test_what_does_not_fit_is_named():
  k, v, log_decay, bonus, state = arguments(5)
  with pytest.raises(ValueError, match="implementation='chunked' is not one of auto, associative, sequential"):
    weighted_average(k, v, log_decay, bonus, implementation='chunked')
  with pytest.raises(ValueError, match=r'log_decay has shape \(2,\); expected \[channels\] = \(3,\)'):
    weighted_average(k, v, log_decay[:2], bonus)
  with pytest.raises(ValueError, match=r'initial exponent has shape \(1, 3\)'):
    weighted_average(k, v, log_decay, bonus, (*state[:2], state[2][:1]))
