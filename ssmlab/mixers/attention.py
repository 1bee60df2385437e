"""Softmax attention, of Llama, GPT-2 and BERT.  Attention Is All You Need, arXiv 1706.03762; grouped heads arXiv 2305.13245; rotary
arXiv 2104.09864; ALiBi arXiv 2108.12409.

Layout of rotary pairs as in Hugging Face's files (feature j with j + half), not as in Meta's.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers import Mixer
from ssmlab.ops import rotary, segments
from ssmlab.ops.attention import alibi_slopes, attend, attend_cached, init_cache
from ssmlab.ops.fused_attention import PLATFORMS
from ssmlab.ops.projection import project


@dataclasses.dataclass(frozen=True)
class Attention(Mixer):
  """softmax(rotate(x W_q) rotate(x W_k)^T / sqrt(head_dim) - slope |i - j|) x W_v W_o.

  heads, kv_heads: query heads and key/value heads (None: as many); head_dim: width of each.
  causal: False: a token sees its whole document, and there is no state (encoders).
  window: how many keys a query sees to its left, itself included, and as many to its right where not causal; None for all.
  theta: base of the rotary wavelengths; rotary_fraction: share of head_dim that is rotated (0 turns it off).
  bias: biases on q, k, v (and the gate); output_bias: on the output.  qk_norm: RMSNorm over head_dim of q and k before rotation, or None.
  gate: the heads' outputs are multiplied by sigmoid(x W_g) before W_o (Gated Attention, arXiv 2505.06708; Qwen3-Next).
  alibi: the scores fall with the distance, by a slope of each head's own that is not trained (ops.attention.alibi_slopes).
  start: standard deviation of the matrices' first values (GPT-2, BERT: 0.02); None: 1 / sqrt(in).
  depth_scaled: the output's is divided by sqrt(2 layers) (GPT-2, not BERT).
  implementation: of training: 'xla', 'splash' (TPU) or 'cudnn' (GPU), see ops.fused_attention; with a state it is always XLA's.
  cache_dtype: what keys and values are kept in between calls, 'float32' or 'bfloat16'.
  """
  heads: int
  head_dim: int
  kv_heads: int | None = None
  window: int | None = None
  theta: float = 10000.0
  rotary_fraction: float = 1.0
  bias: bool = False
  output_bias: bool = False
  qk_norm: RMSNorm | None = None
  gate: bool = False
  causal: bool = True
  alibi: bool = False
  start: float | None = None
  depth_scaled: bool = True
  cache_dtype: str = 'float32'
  implementation: str = 'xla'

  def __post_init__(self):
    if self.heads % (self.kv_heads or self.heads):
      raise ValueError(f'Attention: heads={self.heads} is not a multiple of kv_heads={self.kv_heads}')
    if self.cache_dtype not in ('float32', 'bfloat16'):
      raise ValueError(f"Attention: cache_dtype={self.cache_dtype!r} is not 'float32' or 'bfloat16'")
    if self.implementation not in ('xla', *PLATFORMS):
      raise ValueError(f"Attention: implementation={self.implementation!r} is not one of xla, {', '.join(PLATFORMS)}")
    if self.window is not None and self.window < 1:
      raise ValueError(f'Attention: window={self.window} must be at least 1, or None')

  @property
  def has_state(self) -> bool:
    return self.causal

  @property
  def _slopes(self) -> tuple[float, ...] | None:
    return alibi_slopes(self.heads) if self.alibi else None

  @property
  def _kv(self) -> int:
    return self.kv_heads or self.heads

  @property
  def _rotated(self) -> int:
    return int(self.head_dim * self.rotary_fraction)

  def params(self, width: int):
    q, kv = self.heads * self.head_dim, self._kv * self.head_dim
    into, out = inits.into_and_out(q, self.start, self.depth_scaled)
    tree = dict(w_q=Param((width, q), ('width', 'inner'), into), w_k=Param((width, kv), ('width', 'inner'), into),
                w_v=Param((width, kv), ('width', 'inner'), into), w_o=Param((q, width), ('inner', 'width'), out))
    if self.gate:
      tree |= dict(w_g=Param((width, q), ('width', 'inner'), into)) | (dict(b_g=vector(q, 'inner')) if self.bias else {})
    if self.bias:
      tree |= dict(b_q=vector(q, 'inner'), b_k=vector(kv, 'inner'), b_v=vector(kv, 'inner'))
    if self.output_bias:
      tree |= dict(b_o=vector(width, None))
    if self.qk_norm:
      tree |= dict(norm_q=self.qk_norm.params(self.head_dim), norm_k=self.qk_norm.params(self.head_dim))
    return tree

  def init_state(self, width: int, batch: int, max_length: int):
    if not self.causal:
      return {}
    slots = max_length if self.window is None else min(max_length, self.window)
    return dict(cache=init_cache(batch, slots, self._kv, self.head_dim, jnp.dtype(self.cache_dtype)),
                position=jnp.zeros((batch,), jnp.int32))

  def room(self, state) -> int | None:
    held, written = state['cache']['held'], state['cache']['written']
    return None if self.window is not None and held.shape[-1] >= self.window else held.shape[-1] - int(written.max())

  def flops(self, width: int, length: int) -> float:
    whole, near = ((length + 1) / 2, self.window) if self.causal else (length, 2 * (self.window or 0) - 1)
    seen = whole if self.window is None else min(whole, near)
    return super().flops(width, length) + 4 * self.heads * self.head_dim * seen

  def _map(self, params, x, name: str):
    y = project(x, params[f'w_{name}'])
    return y + params[f'b_{name}'] if self.bias else y

  def _heads(self, params, x, name: str, heads: int):
    y = self._map(params, x, name).reshape(*x.shape[:2], heads, self.head_dim)
    return self.qk_norm.apply(params[f'norm_{name}'], y) if self.qk_norm and name != 'v' else y

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    if state is not None and not self.causal:
      raise ValueError('Attention: causal=False reads in both directions and has no state: state must be None')
    batch, time, _ = x.shape
    q, k, v = (self._heads(params, x, name, n) for name, n in (('q', self.heads), ('k', self._kv), ('v', self._kv)))
    carried = jnp.zeros((batch,), jnp.int32) if state is None else state['position']
    positions, position = segments.positions(segment_ids, time, carried)
    if self._rotated:
      radians = rotary.frequencies(self._rotated, self.theta)
      q, k = rotary.rotate(q, positions, radians), rotary.rotate(k, positions, radians)
    if state is None:
      y, state = attend(q, k, v, causal=self.causal, window=self.window, slopes=self._slopes, segment_ids=segment_ids,
                        implementation=self.implementation), None
    else:
      y, cache = attend_cached(q, k, v, state['cache'], positions, window=self.window, slopes=self._slopes, segment_ids=segment_ids)
      state = dict(cache=cache, position=position)
    y = y.reshape(batch, time, -1)
    if self.gate:
      y = y * jax.nn.sigmoid(self._map(params, x, 'g'))
    y = project(y, params['w_o'])
    return y + params['b_o'] if self.output_bias else y, state


TINY = Attention(heads=4, kv_heads=2, head_dim=8, window=5)
