"""Causal depthwise convolution over a few steps, and the token shift, with what they carry between calls and across packed documents."""

import functools

import jax
import jax.numpy as jnp

from ssmlab.ops import segments, sequence


def _rows(array: jax.Array, start: jax.Array, length: int) -> jax.Array:
  """array[b, start[b] : start[b] + length] for every row b."""
  cut = lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, length, axis=0)
  return jax.vmap(cut)(array, start)


def delayed(x: jax.Array, reach: int, tail: jax.Array | None = None,
            segment_ids: jax.Array | None = None) -> tuple[list[jax.Array], jax.Array]:
  """The inputs 1, 2, ... `reach` steps earlier in the same document, zeros before its beginning.

  x: [batch, time, channels].
  tail: [batch, reach, channels], the last inputs of earlier calls, oldest first, or None for zeros.
  segment_ids: int32 [batch, time] or None; a document start cuts, padding is skipped (see ops.segments).
  Returns ([x delayed by 1, ..., x delayed by reach], next tail); the tail has x's dtype.
  """
  batch, time, channels = x.shape
  if tail is not None and tail.shape != (batch, reach, channels):
    raise ValueError(f'tail has shape {tail.shape}, expected {(batch, reach, channels)} (batch, reach, channels)')
  before = jnp.zeros((batch, reach, channels), x.dtype) if tail is None else tail.astype(x.dtype)
  tokens, shared = dict(x=x), dict(before=before)
  if segment_ids is not None:
    is_real, document = segments.real(segment_ids), segments.documents(segment_ids)
    position, _ = segments.positions(segment_ids, time, jnp.zeros((batch,), jnp.int32))
    last = segments.last_real(segment_ids)
    at_end = lambda values: jnp.take_along_axis(values, jnp.maximum(last, 0)[:, None], axis=1)
    keep = (at_end(document) == 0) | (at_end(position) >= jnp.arange(reach - 1, -1, -1)) | (last < 0)[:, None]
    tokens = dict(x=jnp.where(is_real[..., None], x, 0), reaches=jnp.where(document == 0, reach, position))
    shared |= dict(keep=keep, begin=jnp.where(is_real.any(axis=1), jnp.argmax(is_real, axis=1), time), end=jnp.where(last < 0, time, last + 1))
  if sequence.parts(time) > 1:
    return sequence.on_parts(functools.partial(_of_part, reach, tail is not None), tokens, shared)
  if segment_ids is None:
    return _delayed(jnp.concatenate([before, x], axis=1), reach)
  line = jnp.concatenate([jnp.zeros_like(before), tokens['x']], axis=1)
  return _delayed(line if tail is None else _put(line, before, shared['begin']), reach, tokens['reaches'], shared['end'], shared['keep'])


def _delayed(line: jax.Array, reach: int, reaches=None, end=None, keep=None) -> tuple[list[jax.Array], jax.Array]:
  """line: [batch, reach + time, channels], what stands before the time and the time.  reaches: how far back a token sees, [batch, time].
  end: tokens up to and with the last real one, [batch].  keep: which of the `reach` inputs before the end are of its document."""
  time = line.shape[1] - reach
  shifted = [line[:, reach - s:reach - s + time] for s in range(1, reach + 1)]
  if reaches is None:
    return shifted, line[:, time:]
  shifted = [jnp.where((reaches >= s)[..., None], value, 0) for s, value in enumerate(shifted, start=1)]
  return shifted, jnp.where(keep[..., None], _rows(line, end, reach), 0)


def _put(line: jax.Array, values: jax.Array, at: jax.Array) -> jax.Array:
  """The carried inputs stand right before the first real token."""
  return jax.vmap(lambda row, value, at: jax.lax.dynamic_update_slice_in_dim(row, value, at, axis=0))(line, values, at)


def _of_part(reach: int, carried: bool, tokens: dict, shared: dict) -> tuple[list[jax.Array], jax.Array]:
  """Where the mesh splits time: before a part stand the last inputs of the parts before it, before the first what earlier calls left."""
  x, before = tokens['x'], shared['before']
  time = x.shape[1]
  offset, around = sequence.offset(time), sequence.halo(x, reach)
  if 'reaches' not in tokens:
    return _delayed(jnp.concatenate([jnp.where(offset == 0, before, around), x], axis=1), reach)
  line = jnp.concatenate([around, x], axis=1)
  if carried:                                               # anywhere on the line, in part, or beside it
    room = jnp.pad(line, ((0, 0), (reach, reach), (0, 0)))
    line = _put(room, before, jnp.clip(shared['begin'] - offset, -reach, time + reach) + reach)[:, reach:-reach]
  end = shared['end'] - offset
  shifted, tail = _delayed(line, reach, tokens['reaches'], jnp.clip(end, 0, time), shared['keep'])
  return shifted, sequence.total(jnp.where(((end > 0) & (end <= time))[:, None, None], tail, 0))


def short_convolution(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, tail: jax.Array | None = None,
                      segment_ids: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
  """y[t] = bias + sum_j kernel[j] * x[t - (width - 1) + j], per channel; the last tap multiplies the current input.

  x: [batch, time, channels].  kernel: [width, channels].  bias: [channels] or None.
  tail: [batch, at least width - 1, channels] or None; a longer one (Mamba's decoding state holds `width` inputs) is kept as long.
  segment_ids: int32 [batch, time] or None.
  Returns (y [batch, time, channels], next tail).  Raises ValueError where the channels differ.
  """
  if kernel.shape[-1] != x.shape[-1]:
    raise ValueError(f'kernel has {kernel.shape[-1]} channels, x has {x.shape[-1]}')
  reach = kernel.shape[0] - 1
  earlier, tail = delayed(x, reach if tail is None else max(reach, tail.shape[1]), tail, segment_ids)
  y = x * kernel[reach]
  for s, value in enumerate(earlier[:reach], start=1):
    y = y + value * kernel[reach - s]
  return y if bias is None else y + bias, tail


def token_shift(x: jax.Array, previous: jax.Array | None = None,
                segment_ids: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
  """The input one step earlier, zeros at the start of a document (RWKV's time shift).

  x: [batch, time, channels].  previous: [batch, channels], the last input of earlier calls, or None.
  Returns (shifted [batch, time, channels], next previous [batch, channels]).
  """
  (shifted,), tail = delayed(x, 1, None if previous is None else previous[:, None], segment_ids)
  return shifted, tail[:, 0]
