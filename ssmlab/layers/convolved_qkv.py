"""Queries, keys and values as the delta-rule mixers make them: a matrix, a short causal depthwise convolution, SiLU."""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param
from ssmlab.ops.short_convolution import short_convolution

START = inits.xavier_uniform(2 ** -2.5)     # of every matrix in the authors' layers


@dataclasses.dataclass(frozen=True)
class ConvolvedQKV:
  """silu(conv(x W)) for q, k and v.

  keys: channels of q and of k over all heads.  values: channels of v.  conv_width: steps of the convolutions.
  Convolutions have no bias and PyTorch's start, uniform within 1 / sqrt(conv_width).
  """
  keys: int
  values: int
  conv_width: int

  @property
  def _sizes(self) -> dict[str, int]:
    return dict(q=self.keys, k=self.keys, v=self.values)

  def params(self, width: int):
    bound = self.conv_width ** -0.5
    kernel = lambda size: Param((self.conv_width, size), (None, 'inner'), inits.uniform(-bound, bound))
    return ({f'w_{name}': Param((width, size), ('width', 'inner'), START) for name, size in self._sizes.items()} |
            {f'conv_{name}': kernel(size) for name, size in self._sizes.items()})

  def init_state(self, batch: int):
    return {name: jnp.zeros((batch, self.conv_width - 1, size), jnp.float32) for name, size in self._sizes.items()}

  def apply(self, params, x: jax.Array, state=None, segment_ids: jax.Array | None = None):
    """x [batch, time, width] -> (q, k [batch, time, keys], v [batch, time, values]), tails or None."""
    out, tails = [], {}
    for name in 'qkv':
      y, tail = short_convolution(x @ params[f'w_{name}'], params[f'conv_{name}'], None, None if state is None else state[name], segment_ids)
      out.append(jax.nn.silu(y))
      tails[name] = tail.astype(jnp.float32)
    return tuple(out), None if state is None else tails
