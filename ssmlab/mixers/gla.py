"""Gated linear attention.  Gated Linear Attention Transformers with Hardware-Efficient Training, arXiv 2312.06635, section 4.4;
author code fla-org/flash-linear-attention, fla/layers/gla.py (the first author's).
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.norms import rms_normalise
from ssmlab.mixers import Mixer
from ssmlab.ops import linear_recurrence
from ssmlab.ops.projection import project


@dataclasses.dataclass(frozen=True)
class GLA(Mixer):
  """S[t] = diag(alpha) S[t-1] + k (x) v,  y = (norm(S^T q) * scale * silu(x W_g)) W_o,  alpha = sigmoid(x W_a1 W_a2 + b_a)^(1/temperature).

  heads: 4 in the paper; head_dim: key size of a head, width / 2 / heads in the paper.  value_dim: value size of a head (None: twice
  head_dim, the paper's choice).  rank: of the map to the decays.  temperature: how much the decays are drawn towards 1.
  eps: of the norm over each head's output.
  """
  heads: int
  head_dim: int
  value_dim: int | None = None
  rank: int = 16
  temperature: float = 16.0
  eps: float = 1e-5

  @property
  def _value(self) -> int:
    return self.value_dim or 2 * self.head_dim

  def params(self, width: int):
    keys, values, start = self.heads * self.head_dim, self.heads * self._value, inits.xavier_uniform(2 ** -2.5)
    into = lambda size: Param((width, size), ('width', 'inner'), start)
    return dict(w_q=into(keys), w_k=into(keys), w_v=into(values), w_g=into(values),
                w_a1=Param((width, self.rank), ('width', None), start), w_a2=Param((self.rank, keys), (None, 'inner'), start),
                b_a=vector(keys, 'inner', full_precision=True), norm_scale=vector(self._value, None, inits.constant(1.0)),
                w_o=Param((values, width), ('inner', 'width'), start))

  def init_state(self, width: int, batch: int, max_length: int):
    return dict(memory=jnp.zeros((batch, self.heads, self.head_dim, self._value), jnp.float32))

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + 4 * self.heads * self.head_dim * self._value

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    batch, time, _ = x.shape
    split = lambda y: y.reshape(batch, time, self.heads, -1)
    q, k, v = (split(project(x, params[f'w_{name}'])) for name in 'qkv')
    logits = project(project(x, params['w_a1']), params['w_a2']).astype(params['b_a'].dtype) + params['b_a']
    log_decay = jax.nn.log_sigmoid(logits) / self.temperature
    o, memory = linear_recurrence(q * self.head_dim ** -0.5, k, v, split(log_decay), initial=None if state is None else state['memory'],
                                  segment_ids=segment_ids)
    o = (rms_normalise(o, self.eps) * params['norm_scale']).reshape(batch, time, -1)
    return project(o * jax.nn.silu(project(x, params['w_g'])), params['w_o']), None if state is None else dict(memory=memory)


TINY = GLA(heads=2, head_dim=4, value_dim=6, rank=4)
