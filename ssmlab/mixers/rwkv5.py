"""RWKV-5.2 time mixing (x052).  Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence, arXiv 2404.05892, section 4;
author code BlinkDL/RWKV-LM, RWKV-v5/src/model.py (class RWKV_TimeMix_RWKV5).

The code divides the heads' outputs by 8 before a norm with eps 1e-5, whatever the head size; that is the norm with eps 64e-5.
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


@dataclasses.dataclass(frozen=True)
class RWKV5(Mixer):
  """o[t] = r[t] (S[t-1] + diag(bonus) k[t]^T v[t]),  S[t] = diag(e^(-e^decay)) S[t-1] + k[t]^T v[t],  y = (norm(o) * silu(g)) W_o.

  r, k, v, g are maps of mix * x[t] + (1 - mix) * x[t-1].
  head_dim: size of a head; width must be a multiple of it.  64 in every released model.  eps: of the norm over each head's output.
  """
  head_dim: int = 64
  eps: float = 64e-5

  def params(self, width: int):
    if width % self.head_dim:
      raise ValueError(f'RWKV5: width {width} is not a multiple of head_dim {self.head_dim}')
    heads = width // self.head_dim
    square = lambda init: Param((width, width), ('width', 'inner'), init)
    per_head = lambda init, **hints: Param((heads, self.head_dim), ('heads', 'head_dim'), init, weight_decay=False, **hints)
    mixes = dict(r=_mix(width, 0.5), k=_mix(width, 1.0), v=_mix(width, 1.0, 0.3), g=_mix(width, 0.5))
    return {f'mix_{name}': vector(width, None, init) for name, init in mixes.items()} | dict(
        decay=per_head(_by_head(width, self.head_dim, _decay), rate=2.0, full_precision=True),
        bonus=per_head(_by_head(width, self.head_dim, _bonus)),
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
    mixed = {name: x * params[f'mix_{name}'] + before * (1 - params[f'mix_{name}']) for name in 'rkvg'}
    r, k, v, g = (project(mixed[name], params[f'w_{name}']) for name in 'rkvg')
    split = lambda y: y.reshape(batch, time, width // self.head_dim, self.head_dim)
    o, wkv = linear_recurrence(split(r), split(k), split(v), -jnp.exp(params['decay']), bonus=params['bonus'],
                               initial=None if state is None else state['wkv'], segment_ids=segment_ids)
    o = normalise(o, self.eps).reshape(batch, time, width) * params['norm_scale'] + params['norm_bias']
    y = project(o * jax.nn.silu(g), params['w_o'])
    return y, None if state is None else dict(wkv=wkv, shift=last.astype(jnp.float32))


def _depth(layer: Layer):
  """0 at the bottom, 1 at the top; 0 for a single layer, where the authors' code divides by zero."""
  return layer.index / max(layer.count - 1, 1)


def _mix(width: int, power: float, extra: float = 0.0):
  """(channel / width)^(power * (1 - layer / layers)) + extra * depth."""
  return inits.by_layer(lambda layer: (jnp.arange(width) / width) ** (power * (1 - layer.index / layer.count)) + extra * _depth(layer))


def _by_head(width: int, head_dim: int, formula):
  return inits.by_layer(lambda layer: formula(jnp.arange(width) / max(width - 1, 1), layer).reshape(-1, head_dim))


def _decay(channel, layer: Layer):
  return -6 + 5 * channel ** (0.7 + 1.3 * _depth(layer))


def _bonus(channel, layer: Layer):
  return _depth(layer) * (1 - channel) + 0.1 * ((jnp.arange(channel.size) + 1) % 3 - 1)


TINY = RWKV5(head_dim=8)
