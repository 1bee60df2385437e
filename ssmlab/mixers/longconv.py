"""Plain long convolutions.  Simple Hardware-Efficient Long Convolutions for Sequence Modeling, arXiv 2302.06646; author code
HazyResearch/safari, src/models/sequence/long_conv.py (LongConv, one channel, not bidirectional, without dropout).
"""

import dataclasses

import jax

from ssmlab.core import inits
from ssmlab.core.params import Param
from ssmlab.layers.filters import ExplicitFilter, Filtered, LongFilter, ModalFilter
from ssmlab.layers.glu import GLU
from ssmlab.mixers import Mixer

OUTPUT = GLU(torch=True)


@dataclasses.dataclass(frozen=True)
class LongConv(Filtered, Mixer):
  """y = glu(gelu(h conv x + skip x)), every channel on its own up to the glu.

  filter: h, ExplicitFilter in the paper.  None: ModalFilter(), which has no longest length.
  """
  filter: LongFilter | None = None

  _usual = ModalFilter()

  def __post_init__(self):
    self._filter                                             # checks that it is one

  def params(self, width: int):
    return dict(filter=self._filter.params(width), skip=Param((width,), ('inner',), inits.normal(1.0))) | OUTPUT.params(width)

  def init_state(self, width: int, batch: int, max_length: int):
    return self._filter.init_state(width, batch, max_length)

  def room(self, state) -> int | None:
    return self._filter.room(state)

  def flops(self, width: int, length: int) -> float:
    return 4 * width * width + 2 * width + self._filter.flops(width, length)

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    y, state = self._filter.apply(params['filter'], x, state, segment_ids)
    return OUTPUT.apply(params, y + params['skip'] * x), state


TINY = LongConv(ExplicitFilter(l_max=19, threshold=0.01))
