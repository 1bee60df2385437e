"""minGRU.  Were RNNs All We Needed?, arXiv 2410.01201, section 3.1 and appendix B (log-space form); author code BorealisAI/minRNNs,
models/minRNNs.py (class minGRU) and models/model.py.

The authors run the parallel form in log space, on log a and log b.  With the positive candidate g every term of the recurrence is positive
and every a below 1, so that nothing cancels or overflows in plain space either: the same numbers, here for both forms.  The paper's listing
starts from log g(h_0), hence at 0.5 for h_0 = 0; we start at 0, as the authors' code does.  Their learned first state is left out.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.layers.minimal_rnn import ResidualConvolution, linear, positive
from ssmlab.mixers import Mixer
from ssmlab.ops import diagonal_recurrence
from ssmlab.ops.projection import project


@dataclasses.dataclass(frozen=True)
class MinGRU(Mixer):
  """h[t] = (1 - z) h[t-1] + z g(u W_h + b_h),  y = h[t] W_out + b_out,  z = sigmoid(u W_z + b_z),  u = x or x + conv(x) W + b.

  expand: width of the recurrence over that of the block, rounded down.
  conv_width: steps of the convolution before the gates, 4 in the paper's language models; 0: none.
  """
  expand: float
  conv_width: int = 0

  def __post_init__(self):
    if self.conv_width < 0:
      raise ValueError(f'MinGRU: conv_width={self.conv_width} must be at least 0')

  def _inner(self, width: int) -> int:
    if int(self.expand * width) < 1:
      raise ValueError(f'MinGRU: expand={self.expand} leaves no channel of a width of {width}')
    return int(self.expand * width)

  def params(self, width: int):
    inner, tree = self._inner(width), {}
    for name in 'hz':
      tree[f'w_{name}'], tree[f'b_{name}'] = linear(width, inner, ('width', 'inner'), 'inner', weight_decay=False)
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
    candidate, gate = ((project(x, params[f'w_{name}']) + params[f'b_{name}']).astype(wide) for name in 'hz')
    h, after['h'] = diagonal_recurrence(jax.nn.sigmoid(-gate), jax.nn.sigmoid(gate) * positive(candidate),
                                        None if state is None else state['h'], segment_ids)
    return project(h.astype(x.dtype), params['w_out']) + params['b_out'], None if state is None else after


TINY = MinGRU(expand=1.5, conv_width=3)
