"""A filter whose every tap is a parameter.

Simple Hardware-Efficient Long Convolutions for Sequence Modeling, arXiv 2302.06646; author code HazyResearch/safari,
src/models/sequence/long_conv_kernel.py.  Of its two regularisers the soft threshold is here; kernel dropout, which draws anew in every
step, is not: a filter is a function of its parameters.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param
from ssmlab.layers.filters.base import TappedFilter


@dataclasses.dataclass(frozen=True)
class ExplicitFilter(TappedFilter):
  """h = sign(k) max(|k| - threshold, 0), k [l_max, channels].

  l_max: number of taps.  threshold: the paper's lambda, 0.001 to 0.004; 0 for none.
  decaying: k starts as 0.02 N(0, 1) exp(-(j / l_max) (channels / 2)^(c / channels)) at step j of channel c, instead of N(0, 0.002^2).
  rate: factor on the learning rate (the paper's: 1e-4 to 1e-3 where the rest has 1e-2).  form: as for ImplicitFilter.
  """
  l_max: int
  threshold: float = 0.003
  decaying: bool = True
  rate: float = 0.1
  form: str = 'epoched'

  def __post_init__(self):
    super().__post_init__()
    if self.threshold < 0:
      raise ValueError(f'ExplicitFilter: threshold={self.threshold} must be at least 0')

  def params(self, channels: int):
    start = _decaying if self.decaying else inits.normal(0.002)
    return dict(k=Param((self.l_max, channels), (None, 'inner'), start, weight_decay=False, rate=self.rate, full_precision=True))

  def taps(self, params, length: int) -> jax.Array:
    k = params['k'][:self.within(length)]
    return jnp.sign(k) * jnp.maximum(jnp.abs(k) - self.threshold, 0) if self.threshold else k

  def generation_flops(self, channels: int) -> float:
    return 0.0


def _decaying(key, shape, layer):
  length, channels = shape
  speed = (channels / 2) ** (jnp.arange(channels) / channels)
  return 0.02 * jax.random.normal(key, shape) * jnp.exp(-jnp.arange(length)[:, None] / length * speed)
