"""The fused kernels get the right question: splash in interpret mode, cuDNN's arguments answered by XLA, both against ops.attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.mixers.attention import Attention
from ssmlab.ops import attention, fused_attention
from ssmlab.ops.segments import documents, real

BATCH, TIME, HEADS, KV, SIZE = 2, 256, 4, 2, 16


def arrays(dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 3)
  return tuple(jax.random.normal(key, (BATCH, TIME, heads, SIZE), dtype) for key, heads in zip(keys, (HEADS, KV, KV)))


def packed():
  """One document; several, with padding between and behind them."""
  ids = np.ones((BATCH, TIME), np.int32)
  ids[1, 70:] = 2
  ids[1, 130:140] = 0
  ids[1, -30:] = 0
  return ids


def with_gradients(attend, made):
  weight = jnp.cos(jnp.arange(TIME * HEADS * SIZE, dtype=jnp.float32)).reshape(TIME, HEADS, SIZE)
  total = lambda *made: jnp.sum(attend(*made).astype(jnp.float32) * weight)
  return jax.jit(lambda *made: (attend(*made), jax.grad(total, argnums=(0, 1, 2))(*made)))(*made)


@pytest.mark.parametrize('ids', (None, packed()), ids=('whole', 'packed'))
@pytest.mark.parametrize('causal, window', ((True, None), (True, 40), (False, None), (False, 40)))
def test_splash(causal, window, ids):
  run = None if ids is None else documents(ids) * 2 + ~real(ids)
  made = arrays()
  result = with_gradients(functools.partial(fused_attention.splash, causal=causal, window=window, segments=run, interpret=True), made)
  expected = with_gradients(functools.partial(attention.attend, causal=causal, window=window, segment_ids=ids), made)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=3e-5), result, expected)


@pytest.mark.parametrize('ids', (None, packed()), ids=('whole', 'packed'))
@pytest.mark.parametrize('causal, window, alibi', ((True, None, False), (True, 40, False), (False, 40, True), (False, None, True)))
def test_cudnn(causal, window, alibi, ids, monkeypatch):
  theirs, asked = jax.nn.dot_product_attention, []

  def answered(*args, implementation, **options):
    asked.append(implementation)
    return theirs(*(x.astype(jnp.float32) for x in args), implementation='xla', **options).astype(jnp.bfloat16)
  monkeypatch.setattr(jax.nn, 'dot_product_attention', answered)
  run = None if ids is None else documents(ids) * 2 + ~real(ids)
  slopes = attention.alibi_slopes(HEADS) if alibi else None
  made = arrays(jnp.bfloat16)
  result = with_gradients(functools.partial(fused_attention.cudnn, causal=causal, window=window, slopes=slopes, segments=run), made)
  expected = with_gradients(functools.partial(attention.attend, causal=causal, window=window, slopes=slopes, segment_ids=ids),
                            [x.astype(jnp.float32) for x in made])
  assert set(asked) == {'cudnn'}
  jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x, np.float32), y, rtol=0, atol=0.02 * float(jnp.max(jnp.abs(y)))), result, expected)


def test_what_cannot_run_says_so():
  q, k, v = arrays()
  for name in fused_attention.PLATFORMS:
    with pytest.raises(ValueError, match=f"implementation='{name}' runs on a .*, this is a CPU; 'xla' runs everywhere"):
      attention.attend(q, k, v, implementation=name)
  with pytest.raises(ValueError, match='bfloat16 or float16, not float32'):
    fused_attention.cudnn(q, k, v, causal=True, window=None, slopes=None, segments=None)
  with pytest.raises(ValueError, match='multiple of 128 tokens, not 100'):
    fused_attention.splash(*(x[:, :100] for x in (q, k, v)), causal=True, window=None, segments=None)
  with pytest.raises(ValueError, match="implementation='flash' is not one of xla, splash, cudnn"):
    Attention(heads=2, head_dim=8, implementation='flash')
