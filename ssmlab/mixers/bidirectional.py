"""A mixer run in both directions, for encoders.  Bidirectional Recurrent Neural Networks, Schuster & Paliwal 1997, section II-B; the sum
of the two outputs instead of their concatenation, so that the width stays.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.mixers import Mixer

DIRECTIONS = ('forward', 'backward')


@dataclasses.dataclass(frozen=True)
class Bidirectional(Mixer):
  """y = mixer(x) + flip(mixer'(flip(x))): one mixer from left to right, another with its own parameters from right to left.

  Every token sees its whole document, and nothing of another one.  There is no state: what stands to the right is not known while reading
  on, so generation is not possible.  Causal mixers only; attention has its own option.
  mixer: of both directions.
  """
  mixer: Mixer

  has_state = False

  def params(self, width: int):
    return {name: self.mixer.params(width) for name in DIRECTIONS}

  def init_state(self, width: int, batch: int, max_length: int):
    raise ValueError(self._no_state)

  def flops(self, width: int, length: int) -> float:
    return 2 * self.mixer.flops(width, length)

  def signals(self, x: jax.Array):
    """The mixer's own, once for each direction; the backward ones run from right to left."""
    return {f'{name}_{key}': value for name in DIRECTIONS for key, value in self.mixer.signals(_along(name, x)).items()}

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    y, state, _ = self.apply_signals(params, x, state, self.signals(x), segment_ids=segment_ids)
    return y, state

  def apply_signals(self, params, x: jax.Array, state, signals, *, segment_ids=None):
    if state is not None:
      raise ValueError(self._no_state)
    y, signals = 0, dict(signals)
    for name in DIRECTIONS:
      mine = {key: signals[f'{name}_{key}'] for key in self.mixer.signals(x)}
      ids = None if segment_ids is None else _along(name, segment_ids)
      one, _, mine = self.mixer.apply_signals(params[name], _along(name, x), None, mine, segment_ids=ids)
      y = y + _along(name, one)
      signals |= {f'{name}_{key}': value for key, value in mine.items()}
    return y, None, signals

  @property
  def _no_state(self) -> str:
    return f'Bidirectional({type(self.mixer).__name__}) reads in both directions and has no state: state must be None'


def _along(direction: str, x: jax.Array) -> jax.Array:
  """x [batch, time, ...] in the order in which a direction reads it."""
  return jnp.flip(x, axis=1) if direction == 'backward' else x
