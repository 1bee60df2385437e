"""A mixer with augmented shortcuts beside it.  PanGu-pi: Enhancing Language Model Architectures via Nonlinearity Compensation,
arXiv 2312.17276, eq. 4; Augmented Shortcuts for Vision Transformers, arXiv 2106.15941, eq. 5.

The shortcuts read what the mixer reads, the normed input, as in AugViT's code and in PanGu-pi's figure 2; the identity is the block's.
"""

import dataclasses

import jax

from ssmlab.layers.shortcut import Bottleneck, Shortcut
from ssmlab.mixers import Mixer, Wrapper


@dataclasses.dataclass(frozen=True)
class Augmented(Wrapper):
  """y = mixer(x) + sum_i T_i(x), with a T_i for every one of `shortcuts`; PanGu-pi has attention and one Bottleneck.

  mixer: any.  Its state is the whole state: shortcuts work on one token.
  """
  mixer: Mixer
  shortcuts: tuple[Shortcut, ...] = (Bottleneck(),)

  def params(self, width: int):
    return dict(mixer=self.mixer.params(width), shortcuts={str(i): one.params(width) for i, one in enumerate(self.shortcuts)})

  def for_generation(self, length: int | None):
    made, turned = self.mixer.for_generation(length)
    return dataclasses.replace(self, mixer=made), lambda params: params | dict(mixer=turned(params['mixer']))

  def flops(self, width: int, length: int) -> float:
    return self.mixer.flops(width, length) + sum(one.flops(width) for one in self.shortcuts)

  def apply_signals(self, params, x: jax.Array, state, signals, *, segment_ids=None):
    y, state, signals = self.mixer.apply_signals(params['mixer'], x, state, signals, segment_ids=segment_ids)
    for i, one in enumerate(self.shortcuts):
      y = y + one.apply(params['shortcuts'][str(i)], x)
    return y, state, signals
