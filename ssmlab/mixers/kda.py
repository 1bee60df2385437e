"""Kimi delta attention: the gated delta rule with a decay per key channel.  Kimi Linear, arXiv 2510.26692, section 3;
author code fla-org/flash-linear-attention, fla/layers/kda.py.

The published weights have no bias on the output gate, fla's layer has one: we follow the weights.  dt_bias starts at 0, as in fla.
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
class KDA(Mixer):
  """S[t] = (I - beta k k^T) diag(alpha) S[t-1] + beta k (x) v,  y = (norm(S^T q) * scale * sigmoid(x W_g1 W_g2)) W_o.

  alpha = exp(-exp(A_log) softplus(x W_f1 W_f2 + dt_bias)), beta = sigmoid(x W_b); q, k, v = silu(conv(x W)), q and k of unit length.
  heads; head_dim: key size of a head.  value_dim: value size of a head (None: head_dim).  conv_width: steps of the short convolutions.
  rank: of the maps to decay and gate (None: value_dim, the authors' choice).
  allow_neg_eigval: beta in (0, 2), so that the transition may reflect (arXiv 2411.12537).  eps: of the norm over each head's output.
  """
  heads: int
  head_dim: int
  value_dim: int | None = None
  conv_width: int = 4
  rank: int | None = None
  allow_neg_eigval: bool = False
  eps: float = 1e-5

  def __post_init__(self):
    if self.conv_width < 1:
      raise ValueError(f'KDA: conv_width={self.conv_width} must be at least 1')

  @property
  def _value(self) -> int:
    return self.value_dim or self.head_dim

  @property
  def _qkv(self) -> ConvolvedQKV:
    return ConvolvedQKV(self.heads * self.head_dim, self.heads * self._value, self.conv_width)

  def params(self, width: int):
    keys, values, rank = self.heads * self.head_dim, self.heads * self._value, self.rank or self._value
    down, up = lambda: Param((width, rank), ('width', None), START), lambda size: Param((rank, size), (None, 'inner'), START)
    return self._qkv.params(width) | dict(
        w_b=Param((width, self.heads), ('width', 'heads'), START), w_f1=down(), w_f2=up(keys), w_g1=down(), w_g2=up(values),
        A_log=vector(self.heads, 'heads', _log_rate, full_precision=True), dt_bias=vector(keys, 'inner', full_precision=True),
        norm_scale=vector(self._value, None, inits.constant(1.0)), w_o=Param((values, width), ('inner', 'width'), START))

  def init_state(self, width: int, batch: int, max_length: int):
    return dict(memory=jnp.zeros((batch, self.heads, self.head_dim, self._value), jnp.float32), conv=self._qkv.init_state(batch))

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + 8 * self.heads * self.head_dim * self._value

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    batch, time, _ = x.shape
    split = lambda y: y.reshape(batch, time, self.heads, -1)
    (q, k, v), conv = self._qkv.apply(params, x, None if state is None else state['conv'], segment_ids)
    beta = jax.nn.sigmoid(x @ params['w_b']) * (2.0 if self.allow_neg_eigval else 1.0)
    steps = jax.nn.softplus((x @ params['w_f1'] @ params['w_f2']).astype(params['dt_bias'].dtype) + params['dt_bias'])
    log_decay = -jnp.exp(params['A_log'])[:, None] * split(steps)
    o, memory = delta_rule(split(q), split(k), split(v), beta, log_decay, initial=None if state is None else state['memory'],
                           segment_ids=segment_ids)
    o = (rms_normalise(o, self.eps) * params['norm_scale']).reshape(batch, time, -1)
    y = (o * jax.nn.sigmoid(x @ params['w_g1'] @ params['w_g2'])) @ params['w_o']
    return y, None if state is None else dict(memory=memory, conv=conv)


def _log_rate(key, shape, layer):
  """log A, A uniform in (1, 16), in float32."""
  return jnp.log(jax.random.uniform(key, shape, jnp.float32, 1.0, 16.0))


TINY = KDA(heads=2, head_dim=4, value_dim=6)
