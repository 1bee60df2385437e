"""HGRN2: gated linear recurrence whose forget gates have lower bounds that rise with depth.  HGRN2: Gated Linear RNNs with State
Expansion, arXiv 2404.07904, eq. 6; bounds from HGRN, arXiv 2311.04823, section 3.1; code fla-org/flash-linear-attention, fla/layers/hgrn2.py.

The authors learn one matrix [layers, channels], softmax it over layers, and give layer l the sum of rows 1 .. l: bounds that begin at 0,
rise, and stay below 1.  A block here owns its parameters alone, so layer l learns instead which share of what is left below 1 it adds,
    bound[l] = bound[l-1] + (1 - bound[l-1]) sigmoid(rise[l]),  bound[0] = 0,
and the bound travels upwards as a signal.  This is the softmax in other coordinates (stick breaking): every set of bounds that theirs can
express ours can, and no other; the start, rise[l] = -log(layers - l), is theirs too: bound[l] = l / layers.  (Where other mixers stand
between, layers counts them all and the bounds end lower.)  Steps of the optimiser differ.  rise[0] is never used.
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

SMALLEST_BOUND = 1e-30     # stands for 0 under the logarithm: the least forget gate, far below what a float32 state can tell from 0


@dataclasses.dataclass(frozen=True)
class HGRN2(Mixer):
  """S[t] = diag(f) S[t-1] + (1 - f) (x) v,  y = (norm(S^T q) * scale) W_o,  f = bound + (1 - bound) sigmoid(x W_f),  q = silu(x W_q).

  heads; head_dim: width of a head's forget gate, 128 in the paper.  value_dim: value size of a head (None: head_dim).
  eps: of the norm over all heads' outputs together.
  """
  heads: int
  head_dim: int
  value_dim: int | None = None
  eps: float = 1e-5

  @property
  def _value(self) -> int:
    return self.value_dim or self.head_dim

  def params(self, width: int):
    keys, values, start = self.heads * self.head_dim, self.heads * self._value, inits.xavier_uniform(2 ** -2.5)
    into = lambda size: Param((width, size), ('width', 'inner'), start)
    rise = inits.by_layer(lambda layer: jnp.full((keys,), -jnp.log(jnp.maximum(layer.count - layer.index, 1.0))))
    return dict(w_q=into(keys), w_f=into(keys), w_v=into(values), rise=vector(keys, 'inner', rise, full_precision=True),
                norm_scale=vector(values, 'inner', inits.constant(1.0)), w_o=Param((values, width), ('inner', 'width'), start))

  def init_state(self, width: int, batch: int, max_length: int):
    return dict(memory=jnp.zeros((batch, self.heads, self.head_dim, self._value), jnp.float32))

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + 4 * self.heads * self.head_dim * self._value

  def signals(self, x: jax.Array):
    """The bound of the HGRN2 layer below, and whether there is one."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return dict(forget_bound=jnp.zeros((self.heads * self.head_dim,), wide), has_forget_bound=jnp.zeros((), bool))

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    y, state, _ = self.apply_signals(params, x, state, self.signals(x), segment_ids=segment_ids)
    return y, state

  def apply_signals(self, params, x: jax.Array, state, signals, *, segment_ids=None):
    batch, time, _ = x.shape
    split = lambda y: y.reshape(batch, time, self.heads, -1)
    below = signals['forget_bound']
    rise = (1 - below) * jax.nn.sigmoid(params['rise'])
    bound = (below + jnp.where(signals['has_forget_bound'], rise, 0.0)).astype(below.dtype)
    log_forget, k = _gate(project(x, params['w_f']).astype(below.dtype), bound)
    q, v = jax.nn.silu(project(x, params['w_q'])), project(x, params['w_v'])
    o, memory = linear_recurrence(split(q), split(k), split(v), split(log_forget), initial=None if state is None else state['memory'],
                                  segment_ids=segment_ids)
    y = project(rms_normalise(o.reshape(batch, time, -1), self.eps) * params['norm_scale'], params['w_o'])
    signals = signals | dict(forget_bound=bound, has_forget_bound=jnp.ones((), bool))
    return y, None if state is None else dict(memory=memory), signals


def _gate(logits: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
  """log f and 1 - f for f = bound + (1 - bound) sigmoid(logits), without cancellation where f is close to 0 or 1.

  f = sigmoid(logits) + bound sigmoid(-logits), 1 - f = (1 - bound) sigmoid(-logits).
  """
  log_bound = jnp.log(jnp.maximum(bound, SMALLEST_BOUND))
  log_forget = jnp.logaddexp(jax.nn.log_sigmoid(logits), log_bound + jax.nn.log_sigmoid(-logits))
  return jnp.minimum(log_forget, 0.0), (1 - bound) * jax.nn.sigmoid(-logits)


TINY = HGRN2(heads=2, head_dim=6, value_dim=4)
