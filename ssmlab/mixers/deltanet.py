"""Delta rule.  Parallelizing Linear Transformers with the Delta Rule over Sequence Length, arXiv 2406.06484, eq. 3 and section 3.4;
author code fla-org/flash-linear-attention, fla/layers/delta_net.py (the first author's), with its defaults for q and k: SiLU and L2 norm.
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
class DeltaNet(Mixer):
  """S[t] = (I - beta k k^T) S[t-1] + beta k (x) v,  y = (norm(S^T q) * scale) W_o,  beta = sigmoid(x W_b).

  q, k, v = silu(conv(x W)), q and k of unit length.
  heads; head_dim: key size of a head.  value_dim: value size of a head (None: head_dim).  conv_width: steps of the short convolutions.
  gate: the normed output is multiplied by silu(x W_g).  allow_neg_eigval: beta in (0, 2), so that the transition may reflect
  (arXiv 2411.12537).  eps: of the norm over each head's output.
  """
  heads: int
  head_dim: int
  value_dim: int | None = None
  conv_width: int = 4
  gate: bool = False
  allow_neg_eigval: bool = False
  eps: float = 1e-5

  def __post_init__(self):
    if self.conv_width < 1:
      raise ValueError(f'DeltaNet: conv_width={self.conv_width} must be at least 1')

  @property
  def _value(self) -> int:
    return self.value_dim or self.head_dim

  @property
  def _qkv(self) -> ConvolvedQKV:
    return ConvolvedQKV(self.heads * self.head_dim, self.heads * self._value, self.conv_width)

  def params(self, width: int):
    values = self.heads * self._value
    tree = self._qkv.params(width) | dict(
        w_b=Param((width, self.heads), ('width', 'heads'), START), norm_scale=vector(self._value, None, inits.constant(1.0)),
        w_o=Param((values, width), ('inner', 'width'), START))
    return tree | (dict(w_g=Param((width, values), ('width', 'inner'), START)) if self.gate else {})

  def init_state(self, width: int, batch: int, max_length: int):
    return dict(memory=jnp.zeros((batch, self.heads, self.head_dim, self._value), jnp.float32), conv=self._qkv.init_state(batch))

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + 8 * self.heads * self.head_dim * self._value

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    batch, time, _ = x.shape
    (q, k, v), conv = self._qkv.apply(params, x, None if state is None else state['conv'], segment_ids)
    q, k, v = (y.reshape(batch, time, self.heads, -1) for y in (q, k, v))
    beta = jax.nn.sigmoid(x @ params['w_b']) * (2.0 if self.allow_neg_eigval else 1.0)
    o, memory = delta_rule(q, k, v, beta, initial=None if state is None else state['memory'], segment_ids=segment_ids)
    o = (rms_normalise(o, self.eps) * params['norm_scale']).reshape(batch, time, -1)
    if self.gate:
      o = o * jax.nn.silu(x @ params['w_g'])
    return o @ params['w_o'], None if state is None else dict(memory=memory, conv=conv)


TINY = DeltaNet(heads=2, head_dim=6, value_dim=4)
