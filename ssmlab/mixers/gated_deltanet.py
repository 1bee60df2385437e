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
from ssmlab.layers.delta_memory import START, DeltaMemory
from ssmlab.mixers import Mixer
from ssmlab.ops.projection import project


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
    self._memory                                                                  # refuses sizes that do not fit

  @property
  def _memory(self) -> DeltaMemory:
    return DeltaMemory(self.heads, self.value_heads or self.heads, self.head_dim, self.value_dim or 2 * self.head_dim, self.conv_width, self.allow_neg_eigval, self.eps)

  def params(self, width: int):
    heads, inner = self._memory.value_heads, self._memory.inner
    return self._memory.params(width) | dict(
        w_a=Param((width, heads), ('width', 'heads'), START),
        A_log=vector(heads, 'heads', inits.log_of_uniform(0.01, 16.0), full_precision=True),
        dt_bias=vector(heads, 'heads', inits.log_uniform(1e-3, 1e-1, inits.softplus_inverse), full_precision=True),
        w_g=Param((width, inner), ('width', 'inner'), START), w_o=Param((inner, width), ('inner', 'width'), START))

  def init_state(self, width: int, batch: int, max_length: int):
    return self._memory.init_state(batch)

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + self._memory.flops()

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    wide = params['A_log'].dtype
    log_decay = -jnp.exp(params['A_log']) * jax.nn.softplus(project(x, params['w_a']).astype(wide) + params['dt_bias'])
    o, after = self._memory.apply(params, x, log_decay, state, segment_ids)
    return project(o * jax.nn.silu(project(x, params['w_g'])), params['w_o']), after


TINY = GatedDeltaNet(heads=2, head_dim=4, value_heads=4, value_dim=6)
