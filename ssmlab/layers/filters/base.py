"""What the long filters share."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ssmlab.ops import segments
from ssmlab.ops.causal_convolution import causal_convolution
from ssmlab.ops.causal_convolution.streaming import FORMS, init_stream, stream


class LongFilter:
  """Base of the long filters; see the package's docstring."""

  max_length: int | None = None

  def room(self, state) -> int | None:
    """As Mixer.room."""
    return None

  def for_generation(self, length: int | None) -> tuple['LongFilter', Callable[[Any], Any]]:
    """As Mixer.for_generation."""
    return self, lambda params: params

  def apply(self, params, u: jax.Array, state: Any = None, segment_ids: jax.Array | None = None) -> tuple[jax.Array, Any]:
    """sum over j <= t of taps[t - j] u[j], and the state after the tokens (None without one)."""
    return self.convolve(self.kernel(params, u.shape[1], state), u, state, segment_ids)


class Filtered:
  """What mixers with a field `filter`, a LongFilter or None for their `_usual` one, have of it."""

  @property
  def _filter(self) -> LongFilter:
    if self.filter is not None and not isinstance(self.filter, LongFilter):
      raise ValueError(f'{type(self).__name__}: filter={self.filter!r} is not a long filter (ssmlab.layers.filters) or None')
    return self._usual if self.filter is None else self.filter

  @property
  def max_length(self) -> int | None:
    return self._filter.max_length

  def for_generation(self, length: int | None):
    made, turn = self._filter.for_generation(length)
    return dataclasses.replace(self, filter=made), lambda params: params | dict(filter=turn(params['filter']))


class TappedFilter(LongFilter):
  """A filter that is known by its taps, up to l_max of them.  Subclasses are dataclasses with the fields l_max and form."""

  def __post_init__(self):
    if self.l_max < 1:
      raise ValueError(f'{type(self).__name__}: l_max={self.l_max} must be at least 1')
    if self.form not in FORMS:
      raise ValueError(f'{type(self).__name__}: form={self.form!r} is not one of {", ".join(FORMS)}')

  @property
  def max_length(self) -> int:
    return self.l_max

  def within(self, length: int) -> int:
    """`length`, which must not exceed l_max."""
    if length > self.l_max:
      raise ValueError(f'{type(self).__name__}: {length} tokens, but the filter reaches l_max={self.l_max}')
    return length

  def init_state(self, channels: int, batch: int, max_length: int, shared: tuple[int, ...] = ()):
    """`read` counts the current document's tokens, for whoever wants to know how many still fit."""
    return init_stream(batch, min(max_length, self.l_max), (channels, *shared), self.form) | dict(read=jnp.zeros((batch,), jnp.int32))

  def room(self, state) -> int:
    read = state['read']
    return min(self.l_max, state['inputs'].shape[read.ndim]) - int(read.max())

  def kernel(self, params, time: int, state=None) -> jax.Array:
    self.within(time)
    return self.taps(params, time if state is None else min(state['inputs'].shape[1], self.l_max))

  def convolve(self, kernel: jax.Array, u: jax.Array, state=None, segment_ids: jax.Array | None = None):
    if state is None:
      return causal_convolution(u, kernel, segment_ids=segment_ids), None
    _, read = segments.positions(segment_ids, u.shape[1], state['read'])
    y, state = stream({name: leaf for name, leaf in state.items() if name != 'read'}, u, kernel, segment_ids=segment_ids, form=self.form)
    return y, state | dict(read=read)

  def flops(self, channels: int, length: int, shared: int = 1) -> float:
    """The filter's own making, and the FFTs' 5 n log2 n each way (Hyena's appendix A.2), a multiply-add being two."""
    return self.generation_flops(channels) + 10 * channels * shared * math.log2(max(length, 2))
