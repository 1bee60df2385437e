"""Sequence mixers: one file each, one contract.

A mixer is a frozen dataclass of hyper-parameters with pure methods; it owns no norm, residual, width or dtype.

    params(width)                             tree of core.params.Param
    init_state(width, batch, max_length)      what is carried between calls: a tree of zeros whose arrays lead with `batch`.
                                              Zero means "nothing read yet": a state is reset by zeroing a row.
    apply(params, x, state=None, *, segment_ids=None) -> (y, state)        x, y [batch, time, width]

Training gives no state and gets None back.  Prefill and decoding give one and get the state after the tokens.  The state belongs to the
document of the call's first real token; where a later token's segment id differs from its left neighbour's, everything is reset.
A new mixer is a new file here with an instance TINY at its foot; the contract test finds it.
"""

from collections.abc import Callable
from typing import Any

import jax

from ssmlab.core.params import Param


class Mixer:
  """Base of the sequence mixers: what is optional in the contract.

  has_state: whether init_state gives one; an encoder's mixer has none.
  max_length: most tokens of one document that can be read, None without a bound.
  """

  has_state = True
  max_length = None

  def flops(self, width: int, length: int) -> float:
    """Forward FLOPs per token at a context of `length` tokens, a multiply-add being two.  Here the matrices; subclasses add the rest."""
    leaves = jax.tree.leaves(self.params(width), is_leaf=lambda x: isinstance(x, Param))
    return 2 * sum(p.size for p in leaves if len(p.shape) > 1)

  def for_generation(self, length: int | None) -> tuple['Mixer', Callable[[Any], Any]]:
    """A mixer, and a function that turns this one's parameters into its: the same outputs and states, but what does not depend on the input
    is done once and for all.  length: tokens that a state will read, None where that is not known.
    """
    return self, _same

  def room(self, state) -> int | None:
    """Tokens that a state can still read, None without a bound.  state: as from init_state, its arrays also with further axes in front."""
    return None

  def signals(self, x: jax.Array) -> dict[str, Any]:
    """Arrays that travel beside x from block to block, as they are before the first block.  x: [batch, time, width].

    What is said of tokens leads with [batch, time]; the others are the same for all tokens.
    """
    return {}

  def apply_signals(self, params, x: jax.Array, state, signals: dict[str, Any], *, segment_ids=None):
    """`apply` for a mixer that reads or writes signals: returns (y, state, signals)."""
    y, state = self.apply(params, x, state, segment_ids=segment_ids)
    return y, state, signals


class Wrapper(Mixer):
  """Base of a mixer around another one, its field `mixer`, whose state, longest length and signals it has; it gives params, flops, for_generation and
  apply_signals."""

  @property
  def has_state(self) -> bool:
    return self.mixer.has_state

  @property
  def max_length(self) -> int | None:
    return self.mixer.max_length

  def init_state(self, width: int, batch: int, max_length: int):
    return self.mixer.init_state(width, batch, max_length)

  def room(self, state) -> int | None:
    return self.mixer.room(state)

  def signals(self, x: jax.Array) -> dict[str, Any]:
    return self.mixer.signals(x)

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    y, state, _ = self.apply_signals(params, x, state, self.signals(x), segment_ids=segment_ids)
    return y, state


def _same(params):
  return params
