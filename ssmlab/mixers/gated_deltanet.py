"""Gated delta rule.  Gated Delta Networks: Improving Mamba2 with Delta Rule, arXiv 2412.06464, eq. 10 and figure 1;
author code NVlabs/GatedDeltaNet, lit_gpt/gated_delta_net.py, and fla-org/flash-linear-attention, fla/layers/gated_deltanet.py.

Grouped values as in Qwen3-Next (transformers, models/qwen3_next/modeling_qwen3_next.py).  The start of A is the authors' uniform (0, 16)
from 0.01 on, as in transformers since A = 0 turned out to be drawn in bfloat16: its logarithm is a head that is dead for good.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.convolved_qkv import START, ConvolvedQKV
from ssmlab.layers.norms import rms_normalise
from ssmlab.mixers import Mixer
from ssmlab.ops.delta_rule import delta_rule


@dataclasses.dataclass(frozen=True)
class GatedDeltaNet(Mixer):
  """S[t] = (I - beta k k^T) alpha S[t-1] + beta k (x) v,  y = (norm(S^T q) * scale * silu(x W_g)) W_o.

  alpha = exp(-exp(A_log) softplus(x W_a + dt_bias)), beta = sigmoid(x W_b); q, k, v = silu(conv(x W)), q and k of unit length.
  heads: key heads; head_dim: key size of a head.  value_heads: heads of v and of the state, a multiple of heads (None: as many).
  value_dim: value size of a head (None: twice head_dim, the authors' choice).  conv_width: steps of the short convolutions.
  allow_neg_eigval: beta in (0, 2), so that the transition may reflect (arXiv 2411.12537).  eps: of the norm over each head's output.
  """
  heads: int
  head_dim: int
  value_heads: int | None = None
  value_dim: int | None = None
  conv_width: int = 4
  allow_neg_eigval: bool = False
  eps: float = 1e-5

  def __post_init__(self):
    if self._heads % self.heads:
      raise ValueError(f'GatedDeltaNet: value_heads={self.value_heads} is not a multiple of heads={self.heads}')
    if self.conv_width < 1:
      raise ValueError(f'GatedDeltaNet: conv_width={self.conv_width} must be at least 1')

  @property
  def _heads(self) -> int:
    return self.value_heads or self.heads

  @property
  def _value(self) -> int:
    return self.value_dim or 2 * self.head_dim

  @property
  def _qkv(self) -> ConvolvedQKV:
    return ConvolvedQKV(self.heads * self.head_dim, self._heads * self._value, self.conv_width)

  def params(self, width: int):
    values = self._heads * self._value
    per_head = lambda: Param((width, self._heads), ('width', 'heads'), START)
    return self._qkv.params(width) | dict(
        w_a=per_head(), w_b=per_head(), A_log=vector(self._heads, 'heads', _log_rate, full_precision=True),
        dt_bias=vector(self._heads, 'heads', inits.log_uniform(1e-3, 1e-1, inverse_softplus), full_precision=True),
        w_g=Param((width, values), ('width', 'inner'), START), norm_scale=vector(self._value, None, inits.constant(1.0)),
        w_o=Param((values, width), ('inner', 'width'), START))

  def init_state(self, width: int, batch: int, max_length: int):
    return dict(memory=jnp.zeros((batch, self._heads, self.head_dim, self._value), jnp.float32), conv=self._qkv.init_state(batch))

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + 8 * self._heads * self.head_dim * self._value

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    batch, time, _ = x.shape
    split = lambda y, heads: y.reshape(batch, time, heads, -1)
    (q, k, v), conv = self._qkv.apply(params, x, None if state is None else state['conv'], segment_ids)
    beta = jax.nn.sigmoid(x @ params['w_b']) * (2.0 if self.allow_neg_eigval else 1.0)
    wide = params['A_log'].dtype
    log_decay = -jnp.exp(params['A_log']) * jax.nn.softplus((x @ params['w_a']).astype(wide) + params['dt_bias'])
    o, memory = delta_rule(split(q, self.heads), split(k, self.heads), split(v, self._heads), beta, log_decay,
                           initial=None if state is None else state['memory'], segment_ids=segment_ids)
    o = rms_normalise(o, self.eps) * params['norm_scale']
    y = (o.reshape(batch, time, -1) * jax.nn.silu(x @ params['w_g'])) @ params['w_o']
    return y, None if state is None else dict(memory=memory, conv=conv)


def inverse_softplus(x: jax.Array) -> jax.Array:
  """y with softplus(y) = x, for x > 0."""
  return x + jnp.log(-jnp.expm1(-x))


def _log_rate(key, shape, layer):
  """log A, A uniform in (0.01, 16), in float32."""
  return jnp.log(jax.random.uniform(key, shape, jnp.float32, 0.01, 16.0))


TINY = GatedDeltaNet(heads=2, head_dim=4, value_heads=4, value_dim=6)
