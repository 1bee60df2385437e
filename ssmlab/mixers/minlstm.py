"""minLSTM.  Were RNNs All We Needed?, arXiv 2410.01201, section 3.2 and appendix B (log-space form); author code BorealisAI/minRNNs,
models/minRNNs.py (class minLSTM) and models/model.py.

In plain space for both forms, started at 0 and without a learned first state: see mixers.mingru, where the reasons are the same.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import vector
from ssmlab.layers.minimal_rnn import ResidualConvolution, linear, positive
from ssmlab.mixers import Mixer
from ssmlab.ops import diagonal_recurrence
from ssmlab.ops.projection import project


@dataclasses.dataclass(frozen=True)
class MinLSTM(Mixer):
  """h[t] = f' h[t-1] + i' g(u W_h + b_h),  y = h[t] W_out + b_out,  f' = f / (f + i),  i' = i / (f + i),  f, i = sigmoid(u W + b).

  u = x or x + conv(x) W + b.
  expand: width of the recurrence over that of the block, rounded down.
  conv_width: steps of the convolution before the gates, 4 in the paper's language models; 0: none.
  normalised: whether the two gates are divided by their sum; otherwise f' = f and i' = i.
  forget_bias: added to the forget gate's bias at the start.
  """
  expand: float
  conv_width: int = 0
  normalised: bool = True
  forget_bias: float = 0.0

  def __post_init__(self):
    if self.conv_width < 0:
      raise ValueError(f'MinLSTM: conv_width={self.conv_width} must be at least 0')

  def _inner(self, width: int) -> int:
    if int(self.expand * width) < 1:
      raise ValueError(f'MinLSTM: expand={self.expand} leaves no channel of a width of {width}')
    return int(self.expand * width)

  def params(self, width: int):
    inner, tree, bound = self._inner(width), {}, width ** -0.5
    for name in 'hfi':
      tree[f'w_{name}'], tree[f'b_{name}'] = linear(width, inner, ('width', 'inner'), 'inner', weight_decay=False)
    tree['b_f'] = vector(inner, 'inner', inits.uniform(self.forget_bias - bound, self.forget_bias + bound))
    tree['w_out'], tree['b_out'] = linear(inner, width, ('inner', 'width'), None)
    return tree | ({'mix': ResidualConvolution(self.conv_width).params(width)} if self.conv_width else {})

  def init_state(self, width: int, batch: int, max_length: int):
    tree = dict(h=jnp.zeros((batch, self._inner(width)), jnp.float32))
    return tree | (dict(conv=ResidualConvolution(self.conv_width).init_state(width, batch)) if self.conv_width else {})

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + 3 * self._inner(width)

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    after, wide = {}, jnp.promote_types(x.dtype, jnp.float32)
    if self.conv_width:
      x, after['conv'] = ResidualConvolution(self.conv_width).apply(params['mix'], x, None if state is None else state['conv'], segment_ids)
    candidate, forget, write = ((project(x, params[f'w_{name}']) + params[f'b_{name}']).astype(wide) for name in 'hfi')
    forget, write = self._gates(forget, write)
    h, after['h'] = diagonal_recurrence(forget, write * positive(candidate), None if state is None else state['h'], segment_ids)
    return project(h.astype(x.dtype), params['w_out']) + params['b_out'], None if state is None else after

  def _gates(self, forget, write):
    """f' and i' from their logits.  f' = sigmoid(log f - log i): where both gates are closed, f / (f + i) would be 0 / 0."""
    if not self.normalised:
      return jax.nn.sigmoid(forget), jax.nn.sigmoid(write)
    difference = jax.nn.log_sigmoid(forget) - jax.nn.log_sigmoid(write)
    return jax.nn.sigmoid(difference), jax.nn.sigmoid(-difference)


TINY = MinLSTM(expand=1.5, conv_width=3, forget_bias=0.5)
