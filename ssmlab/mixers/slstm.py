"""sLSTM, xLSTM's scalar memory with memory mixing.  xLSTM, arXiv 2405.04517, eq. 8-18;
author code NX-AI/xlstm, xlstm/blocks/slstm/layer.py and cell.py.

The paper leaves the forget gate's function open: the code's sigmoid is the default here.  Start and options are the code's: recurrent
weights zero and not decayed, the forget gate's bias falling with the channel from 5 to -7 by a power law that steepens with depth, the
others zero.  There is no projection after the norm: in the authors' block a gated MLP of width 4/3 follows.
One parameter of theirs is left out, the input gate's bias: it multiplies c and n alike in every step since the document's start, so that
c / n does not depend on it, and the only gradient that it could have is rounding, which Adam would blow up.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Layer, Param, vector
from ssmlab.layers.norms import normalise
from ssmlab.mixers import Mixer
from ssmlab.ops.short_convolution import short_convolution
from ssmlab.ops.slstm_recurrence import State, slstm_recurrence


@dataclasses.dataclass(frozen=True)
class SLSTM(Mixer):
  """c[t] = f c[t-1] + exp(i) tanh(z),  n[t] = f n[t-1] + exp(i),  y = norm(sigmoid(o) c[t] / n[t]),  i, f, z, o = x W + h[t-1] R + b (i without b).

  W and R are block-diagonal, a block per head; i and f read silu(conv(x)) in place of x.  f is a sigmoid.  c and n are kept divided by
  e^m, m the running maximum of the exponents.
  heads: must divide the width.  conv_width: steps of the short convolution, 0 for none.  exponential_forget: f is an exponential.
  eps: of the norm over each head's output.
  """
  heads: int = 4
  conv_width: int = 4
  exponential_forget: bool = False
  eps: float = 1e-5

  def __post_init__(self):
    if self.conv_width < 0:
      raise ValueError(f'SLSTM: conv_width={self.conv_width} must be at least 0')

  def params(self, width: int):
    if width % self.heads:
      raise ValueError(f'SLSTM: width {width} is not a multiple of heads={self.heads}')
    size = width // self.heads
    block = lambda: Param((self.heads, size, size), ('heads', None, None), inits.normal(math.sqrt(2 / (5 * width))))
    tree = dict(
        w_i=block(), w_f=block(), w_z=block(), w_o=block(),
        recurrent=Param((self.heads, size, 4, size), ('heads', None, None, None), inits.zeros(), weight_decay=False),
        b_f=vector(width, 'inner', _forget_bias(self.heads, size), full_precision=True),
        b_z=vector(width, 'inner'), b_o=vector(width, 'inner'), norm_scale=vector(width, 'inner', inits.constant(1.0)))
    if self.conv_width:
      start = inits.uniform(-self.conv_width ** -0.5, self.conv_width ** -0.5)                 # PyTorch's Conv1d
      tree |= dict(conv=Param((self.conv_width, width), (None, 'inner'), start), b_conv=vector(width, 'inner', start))
    return tree

  def init_state(self, width: int, batch: int, max_length: int):
    zeros = lambda *shape: jnp.zeros((batch, *shape), jnp.float32)
    state = dict(cell=State(*(zeros(self.heads, width // self.heads) for _ in State._fields)))
    return state | (dict(conv=zeros(self.conv_width - 1, width)) if self.conv_width else {})

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    after, convolved = {}, x
    if self.conv_width:
      convolved, tail = short_convolution(x, params['conv'], params['b_conv'], None if state is None else state['conv'], segment_ids)
      convolved, after = jax.nn.silu(convolved), dict(conv=tail.astype(jnp.float32))
    gates = jnp.stack([self._gate(params, name, convolved if name in 'if' else x) for name in 'ifzo'], axis=2)
    h, cell = slstm_recurrence(gates, params['recurrent'], None if state is None else state['cell'], segment_ids, self.exponential_forget)
    y = normalise(h, self.eps).reshape(x.shape).astype(x.dtype) * params['norm_scale']
    return y, None if state is None else after | dict(cell=cell)

  def _gate(self, params, name: str, x):
    """x W + b, [batch, time, heads, head_dim], in float32 as b_f is: two of the four are exponentiated."""
    mapped = jnp.einsum('bthi,hij->bthj', x.reshape(*x.shape[:2], self.heads, -1), params[f'w_{name}']).astype(params['b_f'].dtype)
    return mapped if name == 'i' else mapped + params[f'b_{name}'].reshape(self.heads, -1)


def _forget_bias(heads: int, size: int):
  """5 - 12 (channel / (size - 1))^(0.3 + 1.3 depth) in every head, depth from 0 in the first layer to 1 in the last."""
  def start(layer: Layer):
    depth = layer.index / max(layer.count - 1, 1)
    return jnp.tile(5 - 12 * (jnp.arange(size) / max(size - 1, 1)) ** (0.3 + 1.3 * depth), heads)
  return inits.by_layer(start)


TINY = SLSTM(heads=2, conv_width=3)
