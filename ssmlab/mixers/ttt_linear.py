"""TTT-Linear.  Learning to (Learn at Test Time): RNNs with Expressive Hidden States, arXiv 2407.04620, sections 2.1-2.7;
author code test-time-training/ttt-lm-jax, ttt/models/ttt_layer.py (class TTTLinear), whose choices we follow where the paper leaves them
open: one matrix for q and k, told apart by two short convolutions; rotary positions counted within a mini-batch; the inner residual
q + norm(q W + b), trained towards v - k; a norm over all channels after it; GELU (tanh) gate.

Different from the authors: a document may end within a mini-batch and the next one begins its own; the convolutions start from a plain
instead of a truncated normal of the same variance; biases, norms and place_rate are not decayed (the authors exempt nothing); the
convolution before each block (their pre_conv) and the warm-up of the inner learning rate (an option of their trainer) are not here.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.norms import normalise
from ssmlab.mixers import Mixer
from ssmlab.ops import rotary, segments
from ssmlab.ops.inner_descent import inner_descent
from ssmlab.ops.projection import project
from ssmlab.ops.short_convolution import short_convolution

START = inits.normal(0.02)          # of every matrix, the inner model's first weights included


@dataclasses.dataclass(frozen=True)
class TTTLinear(Mixer):
  """y = (gelu(x W_g) * norm(q + f(q; W[t]))) W_o,  W[t] = W' - eta sum over the mini-batch of grad |f(k; W') - (v - k)|^2 / 2,

  f(k; W) = norm(k W + b) per head; gradients are taken at W', the weights at the beginning of the mini-batch (arXiv 2407.04620, eq. 5-7).
  eta of source j at place p is base_rate * sigmoid(x[j] W_rate + b_rate) / head_dim * max(1 / (p + 1) + place_rate[p], 0).

  heads; head_dim: size of a head, even; the authors have heads * head_dim = width.  conv_width: steps of the short convolutions.
  mini_batch: tokens per step of the inner model.  base_rate: inner learning rate, 1 in the paper.
  theta: base of the rotation.  eps: of all norms.
  """
  heads: int
  head_dim: int
  conv_width: int = 4
  mini_batch: int = 16
  base_rate: float = 1.0
  theta: float = 10000.0
  eps: float = 1e-6

  def __post_init__(self):
    if self.head_dim % 2:
      raise ValueError(f'TTTLinear: head_dim={self.head_dim} must be even, its features are rotated in pairs')
    for name in ('mini_batch', 'conv_width'):
      if getattr(self, name) < 1:
        raise ValueError(f'TTTLinear: {name}={getattr(self, name)} must be at least 1')

  def params(self, width: int):
    inner, size = self.heads * self.head_dim, self.head_dim
    one, taps = inits.constant(1.0), inits.normal(self.conv_width ** -0.5)
    per_head = lambda init: Param((self.heads, size), ('heads', 'head_dim'), init, weight_decay=False)
    tree = {f'w_{name}': Param((width, inner), ('width', 'inner'), START) for name in ('qk', 'v', 'g')}
    for name in 'qk':
      tree |= {f'conv_{name}': Param((self.conv_width, inner), (None, 'inner'), taps), f'b_conv_{name}': vector(inner, 'inner')}
    return tree | dict(
        inner_weight=Param((self.heads, size, size), ('heads', None, 'head_dim'), START), inner_bias=per_head(inits.zeros()),
        inner_scale=per_head(one), inner_shift=per_head(inits.zeros()),
        w_rate=Param((width, self.heads), ('width', 'heads'), START), b_rate=vector(self.heads, 'heads'),
        place_rate=vector(self.mini_batch, None, full_precision=True),
        norm_scale=vector(inner, 'inner', one), norm_bias=vector(inner, 'inner'),
        w_o=Param((inner, width), ('inner', 'width'), START))

  def init_state(self, width: int, batch: int, max_length: int):
    """inner: the inner model less what a document begins with, and sums over the mini-batch being read, see ops.inner_descent."""
    weights = (batch, self.heads, self.head_dim, self.head_dim)
    zeros = lambda shape: jnp.zeros(shape, jnp.float32)
    return dict(inner=dict(weight=zeros(weights), weight_sum=zeros(weights), bias=zeros(weights[:3]), bias_sum=zeros(weights[:3])),
                conv=zeros((batch, self.conv_width - 1, self.heads * self.head_dim)), position=jnp.zeros((batch,), jnp.int32))

  def flops(self, width: int, length: int) -> float:
    inner = self.heads * self.head_dim
    return super().flops(width, length) + 6 * inner * self.head_dim + 4 * inner * self.mini_batch

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    batch, time, _ = x.shape
    split = lambda y: y.reshape(batch, time, self.heads, self.head_dim)
    qk = project(x, params['w_qk'])
    convolved = lambda name: short_convolution(qk, params[f'conv_{name}'], params[f'b_conv_{name}'],
                                               None if state is None else state['conv'], segment_ids)
    (q, tail), (k, _) = convolved('q'), convolved('k')
    carried = jnp.zeros((batch,), jnp.int32) if state is None else state['position']
    positions, position = segments.positions(segment_ids, time, carried)
    radians = rotary.frequencies(self.head_dim, self.theta)
    q, k = (rotary.rotate(split(y), positions % self.mini_batch, radians, interleaved=True) for y in (q, k))
    rate = self.base_rate / self.head_dim * jax.nn.sigmoid(project(x, params['w_rate']) + params['b_rate'])
    places = jnp.arange(1, self.mini_batch + 1, dtype=params['place_rate'].dtype)
    z, inner = inner_descent(q, k, split(project(x, params['w_v'])) - k, rate, jnp.maximum(1 / places + params['place_rate'], 0), positions,
                             *(params[f'inner_{name}'] for name in ('weight', 'bias', 'scale', 'shift')), self.eps,
                             initial=None if state is None else state['inner'], segment_ids=segment_ids)
    o = q + (params['inner_scale'] * normalise(z, self.eps) + params['inner_shift']).astype(q.dtype)
    o = normalise(o.reshape(batch, time, -1), self.eps) * params['norm_scale'] + params['norm_bias']
    y = project(jax.nn.gelu(project(x, params['w_g']), approximate=True) * o, params['w_o'])
    return y, None if state is None else dict(inner=inner, conv=tail.astype(jnp.float32), position=position)


TINY = TTTLinear(heads=2, head_dim=6, mini_batch=4)
