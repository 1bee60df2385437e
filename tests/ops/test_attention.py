"""Attention by blocks, pieces and sliding windows is softmax attention over the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.ops import attention

BATCH, HEADS, KV, SIZE = 3, 4, 2, 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(attention, '_BLOCK', 4)
  monkeypatch.setattr(attention, '_PIECES', 3)
  monkeypatch.setattr(attention, '_MANY', 5000)              # 29 tokens: one sequence after another; 13: all at once


def definition(q, k, v, causal, window, ids, slopes=None):
  """Every score at once, in plain jnp; padding (id 0) sees its own run of padding, as documents do."""
  k, v = (jnp.repeat(x, HEADS // KV, axis=2) for x in (k, v))
  time = q.shape[1]
  scores = jnp.einsum('bthd,bshd->bhts', q, k) / np.sqrt(SIZE)
  distance = np.arange(time)[:, None] - np.arange(time)
  if slopes is not None:
    scores = scores - np.array(slopes)[:, None, None] * abs(distance)
  run = np.concatenate([np.zeros((BATCH, 1), int), np.cumsum(np.diff(ids, axis=1) != 0, axis=1)], axis=1)
  seen = np.broadcast_to(run[:, :, None] == run[:, None, :], (BATCH, time, time)) & (distance >= 0 if causal else True)
  if window is not None:
    seen = seen & (abs(distance) < window)
  return jnp.einsum('bhts,bshd->bthd', jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1), v)


def arrays(time):
  keys = jax.random.split(jax.random.key(time), 3)
  return tuple(jax.random.normal(key, (BATCH, time, heads, SIZE), jnp.float64) for key, heads in zip(keys, (HEADS, KV, KV)))


def documents(time):
  """One; two without padding; several with padding before, inside and after."""
  ids = np.ones((BATCH, time), np.int32)
  ids[1, time // 3:] = 2
  ids[2] = np.arange(time) // 5 + 1
  ids[2, :2] = ids[2, -3:] = ids[2, time // 2:time // 2 + 1] = 0
  return ids


@pytest.mark.parametrize('causal', (True, False))
@pytest.mark.parametrize('window', (None, 1, 6))
@pytest.mark.parametrize('time', (3, 13, 29))
def test_attend(time, window, causal):
  with jax.enable_x64(True):
    made = arrays(time)
    for ids in (None, documents(time)):
      dense = np.ones((BATCH, time), np.int32) if ids is None else ids
      total = lambda attend: lambda *made: (jnp.sum(jnp.sin(attend(*made))), attend(*made))
      both = lambda attend: jax.jit(jax.grad(total(attend), argnums=(0, 1, 2), has_aux=True))(*made)
      result = both(functools.partial(attention.attend, causal=causal, window=window, segment_ids=ids))
      expected = both(lambda q, k, v: definition(q, k, v, causal, window, dense))
      jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-11), result, expected)


@pytest.mark.parametrize('causal, window', ((True, None), (False, None), (False, 6)))
def test_alibi(causal, window, time=13):
  slopes = attention.alibi_slopes(HEADS)
  with jax.enable_x64(True):
    made, ids = arrays(time), documents(time)
    both = lambda attend: jax.jit(jax.value_and_grad(lambda *made: jnp.sum(jnp.sin(attend(*made))), argnums=(0, 1, 2)))(*made)
    result = both(functools.partial(attention.attend, causal=causal, window=window, slopes=slopes, segment_ids=ids))
    expected = both(lambda q, k, v: definition(q, k, v, causal, window, ids, slopes))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-11), result, expected)


def test_alibi_slopes():
  """For 12 heads, MosaicBERT's: those of 8, then every second of 16."""
  assert attention.alibi_slopes(4) == (2.0 ** -2, 2.0 ** -4, 2.0 ** -6, 2.0 ** -8)
  assert attention.alibi_slopes(12) == tuple(2.0 ** -n for n in (1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5))
  assert len(attention.alibi_slopes(1)) == 1 and len(attention.alibi_slopes(25)) == 25


@pytest.mark.parametrize('slopes', (None, attention.alibi_slopes(HEADS)))
@pytest.mark.parametrize('window', (None, 3, 6))
def test_cached_calls_of_several_blocks(window, slopes):
  """Calls of 9, 1, 11 and 5 tokens, the cache a ring where there is a window."""
  time, with_padding = 26, documents(26)
  with jax.enable_x64(True):
    q, k, v = arrays(time)
    expected = definition(q, k, v, True, window, with_padding, slopes)
    position = np.array([[sum(row[:t] == row[t]) for t in range(time)] for row in with_padding], np.int32)
    cache = attention.init_cache(BATCH, time if window is None else window, KV, SIZE, jnp.float64)
    seen, start = [], 0
    for size in (9, 1, 11, 5):
      at = slice(start, start + size)
      # The second row's second document begins inside a call; the model resets the cache where one begins with a call.
      new = start and with_padding[:, start] != with_padding[:, start - 1]
      cache = cache | dict(held=jnp.where(np.asarray(new)[..., None], 0, cache['held']))
      y, cache = attention.attend_cached(q[:, at], k[:, at], v[:, at], cache, position[:, at], window=window, slopes=slopes,
                                          segment_ids=with_padding[:, at])
      seen.append(y)
      start += size
  real = with_padding > 0
  np.testing.assert_allclose(np.concatenate(seen, axis=1)[real], np.asarray(expected)[real], rtol=0, atol=1e-11)


def test_memory_grows_with_the_length():
  """Backward too: four times the tokens may not take sixteen times the memory."""
  def bytes_of(time):
    q = jax.ShapeDtypeStruct((1, time, 1, 8), jnp.float32)
    gradient = jax.jit(jax.grad(lambda q, k, v: jnp.sum(attention.attend(q, k, v)), argnums=(0, 1, 2)))
    return gradient.lower(q, q, q).compile().memory_analysis().temp_size_in_bytes
  attention._BLOCK = 32                                       # undone by the fixture
  assert bytes_of(2048) < 5 * bytes_of(512)
