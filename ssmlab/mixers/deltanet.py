"""Delta rule.  Parallelizing Linear Transformers with the Delta Rule over Sequence Length, arXiv 2406.06484, eq. 3 and section 3.4;
author code fla-org/flash-linear-attention, fla/layers/delta_net.py (the first author's), with its defaults for q and k: SiLU and L2 norm.
"""

import dataclasses

import jax

from ssmlab.core.params import Param
from ssmlab.layers.delta_memory import START, DeltaMemory
from ssmlab.mixers import Mixer
from ssmlab.ops.projection import project


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
    self._memory                                                                  # refuses sizes that do not fit

  @property
  def _memory(self) -> DeltaMemory:
    return DeltaMemory(self.heads, self.heads, self.head_dim, self.value_dim or self.head_dim, self.conv_width, self.allow_neg_eigval, self.eps)

  def params(self, width: int):
    inner = self._memory.inner
    gate = dict(w_g=Param((width, inner), ('width', 'inner'), START)) if self.gate else {}
    return self._memory.params(width) | gate | dict(w_o=Param((inner, width), ('inner', 'width'), START))

  def init_state(self, width: int, batch: int, max_length: int):
    return self._memory.init_state(batch)

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + self._memory.flops()

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    o, after = self._memory.apply(params, x, None, state, segment_ids)
    if self.gate:
      o = o * jax.nn.silu(project(x, params['w_g']))
    return project(o, params['w_o']), after


TINY = DeltaNet(heads=2, head_dim=6, value_dim=4)
