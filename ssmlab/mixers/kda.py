"""Kimi delta attention: the gated delta rule with a decay per key channel.  Kimi Linear, arXiv 2510.26692, section 3;
author code fla-org/flash-linear-attention, fla/layers/kda.py.

The published weights have no bias on the output gate, fla's layer has one: we follow the weights.  dt_bias starts at 0, as in fla.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.delta_memory import START, DeltaMemory
from ssmlab.mixers import Mixer
from ssmlab.ops.projection import project


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
    self._memory                                                                  # refuses sizes that do not fit

  @property
  def _memory(self) -> DeltaMemory:
    return DeltaMemory(self.heads, self.heads, self.head_dim, self.value_dim or self.head_dim, self.conv_width, self.allow_neg_eigval, self.eps)

  def params(self, width: int):
    keys, inner, rank = self.heads * self.head_dim, self._memory.inner, self.rank or self._memory.value
    down, up = lambda: Param((width, rank), ('width', None), START), lambda size: Param((rank, size), (None, 'inner'), START)
    return self._memory.params(width) | dict(
        w_f1=down(), w_f2=up(keys), w_g1=down(), w_g2=up(inner), dt_bias=vector(keys, 'inner', full_precision=True),
        A_log=vector(self.heads, 'heads', inits.log_of_uniform(1.0, 16.0), full_precision=True),
        w_o=Param((inner, width), ('inner', 'width'), START))

  def init_state(self, width: int, batch: int, max_length: int):
    return self._memory.init_state(batch)

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + self._memory.flops()

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    steps = jax.nn.softplus(project(project(x, params['w_f1']), params['w_f2']).astype(params['dt_bias'].dtype) + params['dt_bias'])
    log_decay = -jnp.exp(params['A_log'])[:, None] * steps.reshape(*x.shape[:2], self.heads, -1)
    o, after = self._memory.apply(params, x, log_decay, state, segment_ids)
    return project(o * jax.nn.sigmoid(project(project(x, params['w_g1']), params['w_g2'])), params['w_o']), after


TINY = KDA(heads=2, head_dim=4, value_dim=6)
