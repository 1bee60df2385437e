"""RWKV-7 time mixing.  RWKV-7 "Goose" with Expressive Dynamic State Evolution, arXiv 2503.14456, section 4;
author code BlinkDL/RWKV-LM, RWKV-v7/train_temp/src/model.py (class RWKV_Tmix_x070).

Initial values and optimiser settings are the author code's; the README's shape table there is older and differs.
In layer 0 the code holds v0, v1, v2 and never uses them; so do we, for the layers are one stacked array.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Layer, Param, vector
from ssmlab.layers.norms import normalise, unit
from ssmlab.mixers import Mixer
from ssmlab.ops import linear_recurrence
from ssmlab.ops.projection import project
from ssmlab.ops.short_convolution import token_shift

LOWEST_LOG_DECAY = -math.exp(-0.5)
SHIFTED = ('r', 'w', 'k', 'v', 'a', 'g')


def rank(width: int, factor: float) -> int:
  """factor * sqrt(width) rounded to a multiple of 32, at least 32: the author code's rank of the low-rank maps."""
  return max(32, 32 * round(factor * math.sqrt(width) / 32))


@dataclasses.dataclass(frozen=True)
class RWKV7(Mixer):
  """S[t] = S[t-1] (diag(w) - kappa^T (a * kappa)) + v^T k,  y = (norm(r S) + bonus) * g W_output, kappa of unit length.

  The state is kept [key, value], the transpose of the paper's.
  head_dim: size of a head; width must be a multiple of it.  64 in every published model.
  rank_w, rank_a, rank_v, rank_g: ranks of the low-rank maps for decay, learning rate, value residual and gate; None: the author code's
    rule, 2.5 (w, a), 1.7 (v), 5 (g) times sqrt(width) in multiples of 32.
  eps: of the norm over each head's output, 64e-5 whatever the head size.
  """
  head_dim: int = 64
  rank_w: int | None = None
  rank_a: int | None = None
  rank_v: int | None = None
  rank_g: int | None = None
  eps: float = 64e-5

  def _ranks(self, width: int) -> dict[str, int]:
    factors = dict(w=2.5, a=2.5, v=1.7, g=5.0)
    return {name: getattr(self, f'rank_{name}') or rank(width, factor) for name, factor in factors.items()}

  def params(self, width: int):
    if width % self.head_dim:
      raise ValueError(f'RWKV7: width {width} is not a multiple of head_dim {self.head_dim}')
    square = lambda init: Param((width, width), ('width', 'inner'), init)
    tree = {f'x_{name}': vector(width, None, _mix(width, power)) for name, power in zip(SHIFTED, (0.2, 0.9, 0.7, 0.7, 0.9, 0.2))}
    for name, size in self._ranks(width).items():
      tree[f'{name}1'] = Param((width, size), ('width', None), inits.zeros(), weight_decay=False)
      gain = 0.1 * max(1.0, math.sqrt(size / width))
      tree[f'{name}2'] = Param((size, width), (None, 'inner'), inits.orthogonal(gain), weight_decay=False)
    heads = width // self.head_dim
    tree |= dict(
        w0=vector(width, 'inner', _decay(width, self.head_dim), rate=2.0, full_precision=True),
        a0=vector(width, 'inner', inits.by_layer(lambda _: -0.19 + 0.3 * _zigzag(width, self.head_dim) + 0.4 * _ramp(width))),
        v0=vector(width, 'inner', inits.by_layer(lambda _: 0.73 - 0.4 * _ramp(width))),
        k_k=vector(width, 'inner', inits.by_layer(lambda _: 0.71 - 0.1 * _ramp(width))),
        k_a=vector(width, 'inner', inits.constant(1.02)),
        r_k=Param((heads, self.head_dim), ('heads', 'head_dim'), inits.constant(-0.04), weight_decay=False),
        w_r=square(inits.orthogonal(1.0)), w_k=square(inits.orthogonal(0.1)), w_v=square(inits.orthogonal(1.0)),
        w_o=Param((width, width), ('inner', 'width'), inits.zeros()),
        norm_scale=vector(width, 'inner', inits.by_layer(lambda layer: jnp.full((width,), ((1 + layer.index) / layer.count) ** 0.7))),
        norm_bias=vector(width, 'inner'))
    return tree

  def init_state(self, width: int, batch: int, max_length: int):
    return dict(wkv=jnp.zeros((batch, width // self.head_dim, self.head_dim, self.head_dim), jnp.float32),
                shift=jnp.zeros((batch, width), jnp.float32))

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + 8 * width * self.head_dim

  def signals(self, x: jax.Array):
    """The first RWKV-7 layer's values, which every later one mixes in, and whether they are there yet."""
    return dict(first_value=jnp.zeros_like(x), has_first_value=jnp.zeros((), bool))

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    y, state, _ = self.apply_signals(params, x, state, self.signals(x), segment_ids=segment_ids)
    return y, state

  def apply_signals(self, params, x: jax.Array, state, signals, *, segment_ids=None):
    batch, time, width = x.shape
    before, last = token_shift(x, None if state is None else state['shift'], segment_ids)
    mixed = {name: x + (before - x) * params[f'x_{name}'] for name in SHIFTED}
    r, k, v = (project(mixed[name], params[f'w_{name}']) for name in 'rkv')
    log_decay = self._log_decay(params, mixed['w'])
    rate = jax.nn.sigmoid(params['a0'] + project(project(mixed['a'], params['a1']), params['a2']))       # in-context learning rate
    gate = project(jax.nn.sigmoid(project(mixed['g'], params['g1'])), params['g2'])
    towards_first = jax.nn.sigmoid(params['v0'] + project(project(mixed['v'], params['v1']), params['v2']))
    later, first = signals['has_first_value'], signals['first_value']
    signals = signals | dict(first_value=jnp.where(later, first, v), has_first_value=jnp.ones((), bool))
    v = jnp.where(later, v + (first - v) * towards_first, v)
    split = lambda y: y.reshape(batch, time, width // self.head_dim, self.head_dim)
    kappa = unit(split(k * params['k_k']))
    k = split(k * (1 + (rate - 1) * params['k_a']))
    r, v, rate = split(r), split(v), split(rate)
    o, wkv = linear_recurrence(r, k, v, split(log_decay), a=-kappa, b=kappa * rate,
                               initial=None if state is None else state['wkv'], segment_ids=segment_ids)
    o = normalise(o, self.eps).reshape(batch, time, width) * params['norm_scale'] + params['norm_bias']
    bonus = jnp.sum(r * k * params['r_k'], axis=-1, keepdims=True) * v
    y = project((o + bonus.reshape(batch, time, width)) * gate, params['w_o'])
    return y, None if state is None else dict(wkv=wkv, shift=last.astype(jnp.float32)), signals

  def _log_decay(self, params, x):
    """log w = -e^(-1/2) sigmoid(w0 + tanh(x w1) w2), in float32: w is close to 1, which bfloat16 cannot tell from 1."""
    low_rank = project(jnp.tanh(project(x, params['w1'])), params['w2'])
    return LOWEST_LOG_DECAY * jax.nn.sigmoid(params['w0'] + low_rank.astype(params['w0'].dtype))


def _ramp(width: int):
  return jnp.arange(width) / max(width - 1, 1) - 0.5


def _zigzag(width: int, head_dim: int):
  centred = ((jnp.arange(width) % head_dim) - (head_dim - 1) / 2) / max((head_dim - 1) / 2, 0.5)
  return centred * jnp.abs(centred)


def _mix(width: int, power: float):
  """1 - (channel / width)^(power * (1 - layer / layers))."""
  return inits.by_layer(lambda layer: 1 - (jnp.arange(width) / width) ** (power * (1 - layer.index / layer.count)))


def _decay(width: int, head_dim: int):
  def start(layer: Layer):
    depth = layer.index / max(layer.count - 1, 1)
    ramp = -6 + 6 * (jnp.arange(width) / max(width - 1, 1)) ** (1 + depth ** 0.3)
    return ramp + 0.5 + 2.5 * _zigzag(width, head_dim)
  return inits.by_layer(start)


TINY = RWKV7(head_dim=8, rank_w=4, rank_a=4, rank_v=4, rank_g=4)
