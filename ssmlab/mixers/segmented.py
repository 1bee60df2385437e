"""A mixer that reads its time in segments and hands its state on: the same numbers, with the work memory of one segment.

Any split into calls is the whole, by the contract, so that nothing is truncated: gradients go through the states.  The backward pass keeps the state
that enters a segment and computes the segment again; Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174, section 4, along time.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.mixers import Mixer, Wrapper
from ssmlab.ops import segments, sequence


@dataclasses.dataclass(frozen=True)
class Segmented(Wrapper):
  """y = mixer(x), `tokens` at a time.  Parameters, state and signals are the mixer's, so that a checkpoint can be read either way.

  mixer: one with a state; it pays where that is small.  Attention's, which holds the whole length, is kept once for every segment.
  tokens: of a segment; a shorter call is read whole.
  `apply` raises ValueError where the mesh splits time, which is the other way to the same end.
  """
  mixer: Mixer
  tokens: int = 512

  def __post_init__(self):
    if self.tokens < 1:
      raise ValueError(f'Segmented: tokens={self.tokens} must be at least 1')
    if not self.mixer.has_state:
      raise ValueError(f'Segmented: {type(self.mixer).__name__} has no state to hand on')

  def params(self, width: int):
    return self.mixer.params(width)

  def for_generation(self, length: int | None):
    made, turned = self.mixer.for_generation(length)
    return dataclasses.replace(self, mixer=made), turned

  def flops(self, width: int, length: int) -> float:
    return self.mixer.flops(width, length)

  def apply_signals(self, params, x: jax.Array, state, signals, *, segment_ids=None):
    (batch, time, width), begins = x.shape, None
    if time <= self.tokens:
      return self.mixer.apply_signals(params, x, state, signals, segment_ids=segment_ids)
    if sequence.parts(time) > 1:
      raise ValueError(f'Segmented: the mesh splits {time} tokens of time, mesh.sequence={sequence.parts(time)}; one of the two must go')
    if segment_ids is not None:
      begins = segments.starts(segment_ids)
    carried = self.mixer.init_state(width, batch, time) if state is None else state
    beside = {name: array for name, array in signals.items() if array.shape[:2] == (batch, time)}           # the others are of no token

    def read(carried, tokens):
      x, segment_ids, begins, beside = tokens
      if begins is not None:
        carried = segments.fresh(carried, _other_document(segment_ids, begins))
      y, carried, after = self.mixer.apply_signals(params, x, carried, signals | beside, segment_ids=segment_ids)
      return carried, (y, after)

    whole = time - time % self.tokens
    tokens = x, segment_ids, begins, beside
    cut = lambda array: jnp.moveaxis(array[:, :whole].reshape(batch, -1, self.tokens, *array.shape[2:]), 1, 0)
    carried, (y, after) = jax.lax.scan(jax.checkpoint(read, prevent_cse=False), carried, jax.tree.map(cut, tokens))
    join = lambda array: jnp.moveaxis(array, 0, 1).reshape(batch, whole, *array.shape[3:])
    y, after = join(y), {name: join(array) if name in beside else array[-1] for name, array in after.items()}
    if whole < time:
      carried, (y_rest, rest) = read(carried, jax.tree.map(lambda array: array[:, whole:], tokens))
      y = jnp.concatenate([y, y_rest], axis=1)
      after = {name: jnp.concatenate([after[name], array], axis=1) if name in beside else array for name, array in rest.items()}
    return y, None if state is None else carried, after


def _other_document(segment_ids: jax.Array, begins: jax.Array) -> jax.Array:
  """Rows whose first real token here begins a document, which a call's first token would not say by itself.  bool [batch]."""
  first = jnp.argmax(segments.real(segment_ids), axis=1)
  return jnp.take_along_axis(begins, first[:, None], axis=1)[:, 0]
