"""StripedHyena's gated convolution.  No paper: together.ai, "Paving the way to efficient architectures: StripedHyena-7B" (December 2023);
author code togethercomputer/stripedhyena, stripedhyena/model.py (ParallelGatedConvBlock, ParallelHyenaFilter) and engine.py.

It is Hyena of order 2 with filters that are sums of a few exponentials from the start (Laughing Hyena, arXiv 2310.18780), so its state has a
constant size and nothing needs an FFT.  The code keeps the exponentials' bases themselves and publishes no start for training; see ModalFilter.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.filters import Filtered, LongFilter, ModalFilter
from ssmlab.mixers import Mixer
from ssmlab.ops.projection import project
from ssmlab.ops.short_convolution import short_convolution

PUBLISHED = ModalFilter(modes=2, direct=False)


@dataclasses.dataclass(frozen=True)
class StripedHyena(Filtered, Mixer):
  """y = (x2 * (h conv (x1 v) + skip x1 v)) W_out + b_out;  x2, x1, v = conv(x W + b), interleaved head by head: (head, 3, head_dim).

  heads: blocks of that layout, which keep the three parts of a channel on one shard; nothing else depends on them.
  conv_width: steps of the short convolution.  filter: h; None: PUBLISHED, two modes and no coefficient beside `skip`.
  """
  heads: int
  conv_width: int = 3
  filter: LongFilter | None = None

  _usual = PUBLISHED

  def __post_init__(self):
    if self.heads < 1 or self.conv_width < 1:
      raise ValueError(f'StripedHyena: heads={self.heads} and conv_width={self.conv_width} must be at least 1')
    self._filter                                             # checks that it is one

  def params(self, width: int):
    if width % self.heads:
      raise ValueError(f'StripedHyena: width {width} is not a multiple of heads {self.heads}')
    bound = self.conv_width ** -0.5
    return dict(
        w_in=Param((width, 3 * width), ('width', 'inner'), inits.normal(0.02)), b_in=vector(3 * width, 'inner'),
        conv=Param((self.conv_width, 3 * width), (None, 'inner'), inits.uniform(-bound, bound)), b_conv=vector(3 * width, 'inner'),
        filter=self._filter.params(width), skip=Param((width,), ('inner',), inits.zeros()),
        w_out=Param((width, width), ('inner', 'width'), inits.residual(0.02)), b_out=vector(width, None))

  def init_state(self, width: int, batch: int, max_length: int):
    return dict(conv=jnp.zeros((batch, self.conv_width - 1, 3 * width), jnp.float32), long=self._filter.init_state(width, batch, max_length))

  def room(self, state) -> int | None:
    return self._filter.room(state['long'])

  def flops(self, width: int, length: int) -> float:
    return 8 * width * width + 6 * self.conv_width * width + 4 * width + self._filter.flops(width, length)

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    z, tail = short_convolution(project(x, params['w_in']) + params['b_in'], params['conv'], params['b_conv'],
                                None if state is None else state['conv'], segment_ids)
    x2, x1, v = (part.reshape(x.shape) for part in jnp.moveaxis(z.reshape(*x.shape[:2], self.heads, 3, -1), 3, 0))
    v = x1 * v
    y, long = self._filter.apply(params['filter'], v, None if state is None else state['long'], segment_ids)
    y = project(x2 * (y + params['skip'] * v), params['w_out']) + params['b_out']
    return y, None if state is None else dict(conv=tail.astype(jnp.float32), long=long)


TINY = StripedHyena(heads=2, filter=ModalFilter(modes=3))
