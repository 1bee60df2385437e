"""RWKV-6 time mixing (x060).  Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence, arXiv 2404.05892, section 4;
author code BlinkDL/RWKV-LM, RWKV-v5/src/model.py (class RWKV_Tmix_x060).

Since this version mixing coefficients weigh the previous token, not the current one.  The code divides the heads' outputs by 8 before a
norm with eps 1e-5, whatever the head size; that is the norm with eps 64e-5.  Later runs scaled k by what decays away ("6c"); the
released models do not, nor do we.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Layer, Param, vector
from ssmlab.layers.norms import normalise
from ssmlab.mixers import Mixer
from ssmlab.ops import linear_recurrence
from ssmlab.ops.projection import project
from ssmlab.ops.short_convolution import token_shift

MIXED = 'wkvrg'                                             # in the order of the checkpoints' time_maa_w1 and time_maa_w2


@dataclasses.dataclass(frozen=True)
class RWKV6(Mixer):
  """o[t] = r[t] (S[t-1] + diag(bonus) k[t]^T v[t]),  S[t] = diag(w[t]) S[t-1] + k[t]^T v[t],  y = (norm(o) * silu(g)) W_o.

  r, k, v, g, and the decay w = exp(-exp(w0 + tanh(x_w w1) w2)), are of x + d * (x_n + m_n), d = x[t-1] - x[t], where m_n, for each n
  of its own, is tanh((x + d * x_x) mix1) mix2.
  head_dim: size of a head; width must be a multiple of it.  64 in every released model.
  rank_mix, rank_decay: ranks of the low-rank maps.  eps: of the norm over each head's output.
  """
  head_dim: int = 64
  rank_mix: int = 32
  rank_decay: int = 64
  eps: float = 64e-5

  def params(self, width: int):
    if width % self.head_dim:
      raise ValueError(f'RWKV6: width {width} is not a multiple of head_dim {self.head_dim}')
    heads = width // self.head_dim
    square = lambda init: Param((width, width), ('width', 'inner'), init)
    low_rank = lambda shape, axes, init: Param(shape, axes, init, weight_decay=False)
    mixes = dict(x=_mix(width, 1.0), w=_mix(width, 1.0), k=_mix(width, 1.0), v=_mix(width, 1.0, 0.3), r=_mix(width, 0.5), g=_mix(width, 0.5))
    return {f'x_{name}': vector(width, None, init) for name, init in mixes.items()} | dict(
        mix1=low_rank((width, len(MIXED) * self.rank_mix), ('width', None), inits.zeros()),
        mix2=low_rank((len(MIXED), self.rank_mix, width), (None, None, 'width'), inits.uniform(-0.01, 0.01)),
        w0=vector(width, 'inner', inits.by_layer(lambda layer: _decay(width, layer)), rate=2.0, full_precision=True),
        w1=low_rank((width, self.rank_decay), ('width', None), inits.zeros()),
        w2=low_rank((self.rank_decay, width), (None, 'inner'), inits.uniform(-0.01, 0.01)),
        bonus=Param((heads, self.head_dim), ('heads', 'head_dim'),
                    inits.by_layer(lambda layer: _bonus(width, layer).reshape(heads, self.head_dim)), weight_decay=False),
        w_r=square(inits.orthogonal(1.0)), w_k=square(inits.orthogonal(0.1)), w_v=square(inits.orthogonal(1.0)),
        w_g=square(inits.orthogonal(0.1)), w_o=Param((width, width), ('inner', 'width'), inits.zeros()),
        norm_scale=vector(width, 'inner', inits.by_layer(lambda layer: jnp.full((width,), ((1 + layer.index) / layer.count) ** 0.7))),
        norm_bias=vector(width, 'inner'))

  def init_state(self, width: int, batch: int, max_length: int):
    return dict(wkv=jnp.zeros((batch, width // self.head_dim, self.head_dim, self.head_dim), jnp.float32),
                shift=jnp.zeros((batch, width), jnp.float32))

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + 6 * width * self.head_dim

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    batch, time, width = x.shape
    before, last = token_shift(x, None if state is None else state['shift'], segment_ids)
    mixed = self._mixed(params, x, before - x)
    r, k, v, g = (project(mixed[name], params[f'w_{name}']) for name in 'rkvg')
    split = lambda y: y.reshape(batch, time, width // self.head_dim, self.head_dim)
    o, wkv = linear_recurrence(split(r), split(k), split(v), split(self._log_decay(params, mixed['w'])), bonus=params['bonus'],
                               initial=None if state is None else state['wkv'], segment_ids=segment_ids)
    o = normalise(o, self.eps).reshape(batch, time, width) * params['norm_scale'] + params['norm_bias']
    y = project(o * jax.nn.silu(g), params['w_o'])
    return y, None if state is None else dict(wkv=wkv, shift=last.astype(jnp.float32))

  def _mixed(self, params, x, difference):
    """The data-dependent mixes with the previous token ("ddlerp"), one for each of MIXED."""
    low_rank = jnp.tanh(project(x + difference * params['x_x'], params['mix1'])).reshape(*x.shape[:2], len(MIXED), self.rank_mix)
    mixes = jnp.einsum('btnr,nrd->nbtd', low_rank, params['mix2'])
    return {name: x + difference * (params[f'x_{name}'] + mix) for name, mix in zip(MIXED, mixes)}

  def _log_decay(self, params, x):
    """log w = -exp(w0 + tanh(x w1) w2), in float32: w is close to 1, which bfloat16 cannot tell from 1."""
    low_rank = project(jnp.tanh(project(x, params['w1'])), params['w2'])
    return -jnp.exp(params['w0'] + low_rank.astype(params['w0'].dtype))


def _depth(layer: Layer):
  """0 at the bottom, 1 at the top; 0 for a single layer, where the authors' code divides by zero."""
  return layer.index / max(layer.count - 1, 1)


def _mix(width: int, power: float, extra: float = 0.0):
  """1 - (channel / width)^(power * (1 - layer / layers)) - extra * depth."""
  start = lambda layer: 1 - (jnp.arange(width) / width) ** (power * (1 - layer.index / layer.count)) - extra * _depth(layer)
  return inits.by_layer(start)


def _decay(width: int, layer: Layer):
  return -6 + 5 * (jnp.arange(width) / max(width - 1, 1)) ** (0.7 + 1.3 * _depth(layer))


def _bonus(width: int, layer: Layer):
  return _depth(layer) * (1 - jnp.arange(width) / max(width - 1, 1)) + 0.1 * ((jnp.arange(width) + 1) % 3 - 1)


TINY = RWKV6(head_dim=8, rank_mix=4, rank_decay=6)
