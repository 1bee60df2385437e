"""Causal convolution read in calls of any length: what an output owes to earlier calls, in three forms that cost differently per token.

All forms keep a ring of inputs, oldest first from the slot that is written next, and sum the lags inside the current block of the ring directly:
  direct   the block is the whole ring: O(slots) a token.
  epoched  a block is an epoch of B tokens; at its end one FFT computes what everything read so far gives to the next B outputs (`pending`):
           O(B + slots log(slots) / B) a token.
  tiled    a block is one small tile; when 2^k tiles have been read since a power-of-two boundary, one FFT adds what these inputs give to as many
           outputs behind them (`pending`): O(log^2 slots) a token.  Every pair of input and output lies in exactly one such tile, so this is exact.
Oncescu et al., Flash Inference, arXiv 2410.12982, algorithm 2 (tiled); the epochs are the usual square-root decomposition.
"""

import functools

import jax
import jax.numpy as jnp

from ssmlab.ops import segments
from ssmlab.ops.causal_convolution import causal_convolution, fourier
from ssmlab.ops.causal_convolution.sharded import on_mesh

FORMS = ('direct', 'epoched', 'tiled')
State = dict[str, jax.Array]

_TILE = 32               # tokens of the tiled form's block


def init_stream(batch: int, slots: int, channels_shape: tuple[int, ...], form: str = 'tiled') -> State:
  """A fresh state: nothing read.

  slots: how far the filter reaches, in taps; the caller passes min(length of the filter, most tokens that will be read).
  channels_shape: (channels, *shared), the axes of u behind time.
  Returns float32 `inputs` [batch, ring, *channels_shape] (slots, rounded up: tiled to a power of two, epoched to whole epochs), `pending`
  likewise (epoched: one epoch; direct: none) and `clock` int32 [batch], the slot that is written next.  All rows are at the same slot; a row of
  zeros is a fresh row whatever the others are at, so the largest clock counts.
  Raises ValueError on an unknown form and on slots < 1.
  """
  if form not in FORMS:
    raise ValueError(f'form={form!r} is not one of {", ".join(FORMS)}')
  if slots < 1:
    raise ValueError(f'slots={slots}: must be at least 1')
  power = 1 << (slots - 1).bit_length()
  epoch = min(power, 1 << ((power * max(power.bit_length(), 1)).bit_length() // 2))
  ring = {'direct': slots, 'epoched': -(-slots // epoch) * epoch, 'tiled': power}[form]
  pending = {'direct': {}, 'epoched': dict(pending=epoch), 'tiled': dict(pending=ring)}[form]
  zeros = lambda size: jnp.zeros((batch, size, *channels_shape), jnp.float32)
  return dict(inputs=zeros(ring), clock=jnp.zeros((batch,), jnp.int32)) | {name: zeros(size) for name, size in pending.items()}


def stream(state: State, u: jax.Array, h: jax.Array, *, segment_ids: jax.Array | None = None, form: str = 'tiled') -> tuple[jax.Array, State]:
  """(y, state): y as `causal_convolution` of everything that the rows have read so far and u, at u's tokens.

  state: from `init_stream` with the same form, or from an earlier call.
  u: [batch, time, channels, *shared].  h: [taps, channels], the same in every call; taps beyond the ring are not read.
  segment_ids: int32 [batch, time] or None, see `ops.segments`; the state belongs to the call's first document, a later start empties the row.
  A call of one token costs what the form says.  Longer calls, and calls in which a row is padding, cost FFTs over the whole ring.
  Raises ValueError on an unknown form and on shapes that do not fit.
  """
  if form not in FORMS:
    raise ValueError(f'form={form!r} is not one of {", ".join(FORMS)}')
  inputs = state['inputs']
  if u.shape[:1] + u.shape[2:] != inputs.shape[:1] + inputs.shape[2:] or h.ndim != 2 or h.shape[1:] != u.shape[2:3]:
    raise ValueError(f'u has shape {u.shape}, h {h.shape}, state inputs {inputs.shape}; expected [batch, time, channels, *shared], [taps, channels] '
                     'and [batch, ring, channels, *shared]')
  if ('pending' in state) != (form != 'direct') or (form == 'tiled' and state['pending'].shape != inputs.shape):
    raise ValueError(f'form={form!r}, but the state has {", ".join(f"{name} {x.shape}" for name, x in state.items())}: it is of another form')
  if not u.shape[1]:
    return u, state
  dtype = jnp.result_type(jnp.float32, u, h, inputs)
  state = {name: x if name == 'clock' else x.astype(dtype) for name, x in state.items()}
  h = h[:inputs.shape[1]].astype(dtype)
  one = lambda state, u, ids: _one(state, u, h, form)
  many = lambda state, u, ids: _many(state, u, h, ids, form)
  arguments = state, u.astype(dtype), segment_ids
  if u.shape[1] > 1:
    y, state = many(*arguments)
  elif segment_ids is None:
    y, state = one(*arguments)
  else:
    y, state = jax.lax.cond(segments.real(segment_ids).all(), one, many, *arguments)
  return y.astype(u.dtype), state


def _slice(x: jax.Array, at, size: int) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(x, at, size, axis=1)


def _put(x: jax.Array, part: jax.Array, at) -> jax.Array:
  return jax.lax.dynamic_update_slice_in_dim(x, part, at, axis=1)


def _like(h: jax.Array, u: jax.Array) -> jax.Array:
  """[time, channels] with axes of size 1 for u's batch and shared axes."""
  return h.reshape((1,) + h.shape + (1,) * (u.ndim - 3))


def _padded(h: jax.Array, taps: int) -> jax.Array:
  return jnp.pad(h[:taps], ((0, max(taps - h.shape[0], 0)), (0, 0)))


def _one(state: State, u: jax.Array, h: jax.Array, form: str) -> tuple[jax.Array, State]:
  """One token of every row."""
  inputs, ring = state['inputs'], state['inputs'].shape[1]
  block = {'direct': ring, 'epoched': state.get('pending', inputs).shape[1], 'tiled': min(_TILE, ring)}[form]
  at = jnp.max(state['clock'])
  place = at % block
  inputs = jax.lax.optimization_barrier(_put(inputs, u, at))          # else XLA reads the block from the ring before u, and so keeps two rings
  # filters[p] = h[place - p]; what stands behind `place` in the block is older by a whole ring (direct), or not of this block
  backwards = jnp.flip(_padded(h, block), 0)
  weights = jnp.concatenate([backwards, backwards if form == 'direct' else jnp.zeros_like(backwards)])
  weights = jax.lax.dynamic_slice_in_dim(weights, block - 1 - place, block)
  products = _like(weights, u) * _slice(inputs, at - place, block)
  # A product with ones: XLA CPU's sum along this axis takes 23 ms where this takes 0.6 (16384 x 64).
  y = jnp.einsum('p,bp...->b...', jnp.ones(block, products.dtype), products, precision='highest')[:, None]
  after = at + 1
  state = dict(inputs=inputs, clock=jnp.full_like(state['clock'], after % ring)) | {k: state[k] for k in ('pending',) if k in state}
  if form == 'direct':
    return y, state
  pending = state['pending']
  owed = _slice(pending, at % pending.shape[1], 1)
  if form == 'epoched':
    renew = lambda: _debt(jnp.roll(inputs, -after, axis=1), h, block)
    pending = jax.lax.cond(after % block == 0, renew, lambda: pending)
  else:
    owed, pending = _tile(block, owed, pending, inputs, h, after)
  return y + owed, state | dict(pending=pending)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tile(block: int, owed: jax.Array, pending: jax.Array, inputs: jax.Array, h: jax.Array, after: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(owed, pending), with the tile that ends at `after`, if one does, added to what the outputs behind it will get.

  Conditions are loops of one turn or none, because XLA copies what a conditional passes through, here the whole ring for every token.  XLA also
  computes in advance whatever in a loop does not depend on the turn, here every level's FFTs for every token; hence `end`, which changes.
  `owed` passes through, so that it is read before its slot is written: a late read would keep the old ring, by a copy.
  """
  ring = pending.shape[1]

  def add(width, _, carried):
    end, pending = carried
    part, taps = (jnp.where(end < 0, 0, x) for x in (_slice(inputs, end - width, width), h[:2 * width]))      # end is never negative
    begin = end % ring
    return end + 1, _put(pending, _slice(pending, begin, width) + _debt(part, taps, width), begin)

  def close(_, carried):
    end, owed, pending = carried
    pending = _put(pending, jnp.zeros_like(pending[:, :block]), end - block)              # these outputs are out; the slots begin anew
    width = block
    while width <= ring:
      ends = (end % width == 0) & ((end % (2 * width) != 0) | (width == ring))
      _, pending = jax.lax.fori_loop(0, ends.astype(jnp.int32), functools.partial(add, width), (end, pending))
      width *= 2
    return end + 1, jnp.where(end < 0, 0, owed), pending

  return jax.lax.fori_loop(0, (after % block == 0).astype(jnp.int32), close, (after, owed, pending))[1:]


def _tile_by_conditions(block, owed, pending, inputs, h, after):
  """The same with conditionals, which have a reverse-mode gradient."""
  ring = pending.shape[1]

  def branch(width, pending, inputs, h):
    pending = _put(pending, jnp.zeros_like(pending[:, :block]), after - block)
    begin = after % ring
    return _put(pending, _slice(pending, begin, width) + _debt(_slice(inputs, after - width, width), h[:2 * width], width), begin)

  widths = [block << k for k in range((ring // block).bit_length())]
  blocks = after // block                                 # of the blocks read, the largest power of two that divides their number is the tile
  level = jnp.minimum(jax.lax.population_count((blocks & -blocks) - 1), len(widths) - 1)
  branches = [lambda pending, inputs, h: pending, *(functools.partial(branch, width) for width in widths)]
  return owed, jax.lax.switch(jnp.where(after % block == 0, level + 1, 0), branches, pending, inputs, h)


def _tile_gradient(block, saved, cotangents):
  *arguments, after = saved
  return *jax.vjp(lambda *arguments: _tile_by_conditions(block, *arguments, after), *arguments)[1](cotangents), None


_tile.defvjp(lambda block, *arguments: (_tile(block, *arguments), arguments), _tile_gradient)


def _debt(inputs: jax.Array, h: jax.Array, outputs: int) -> jax.Array:
  """What these inputs, oldest first, give to the next `outputs` <= their number of outputs.  [batch, outputs, channels, *shared]."""
  def local(inputs, h, _):
    width = inputs.shape[1]
    rows = jnp.moveaxis(inputs.reshape(inputs.shape[:3] + (-1,)), 1, -1)
    y = fourier.across(rows, h[:2 * width].T[:, None])[..., :outputs]
    return jnp.moveaxis(y, -1, 1).reshape(inputs.shape[:1] + (outputs,) + inputs.shape[2:])
  return on_mesh(local, inputs, h, split_time=False)


def _many(state: State, u: jax.Array, h: jax.Array, segment_ids: jax.Array | None, form: str) -> tuple[jax.Array, State]:
  """Any number of tokens: one convolution over history and call, and everything that is pending computed anew.  All rows end at slot 0."""
  history = jnp.roll(state['inputs'], -jnp.max(state['clock']), axis=1)
  ring = history.shape[1]
  line, ids, y_ids, latest = _appended(history, u, segment_ids)
  y = jax.lax.cond(jnp.any(history), lambda: causal_convolution(line, h, segment_ids=ids)[:, ring:],
                   lambda: causal_convolution(line[:, ring:], h, segment_ids=y_ids))
  if segment_ids is not None:
    y = jnp.where(segments.real(segment_ids).reshape(u.shape[:2] + (1,) * (u.ndim - 2)), y, 0)
  new = dict(inputs=latest, clock=jnp.zeros_like(state['clock']))
  return y, new if form == 'direct' else new | dict(pending=_debt(latest, h, state['pending'].shape[1]))


def _appended(history: jax.Array, u: jax.Array, segment_ids: jax.Array | None) -> tuple:
  """(history and u in one line with the history right before the row's first real token, its ids, the call's ids, the line's last inputs)."""
  (batch, ring), time = history.shape[:2], u.shape[1]
  if segment_ids is None:
    line = jnp.concatenate([history, u], axis=1)
    return line, None, None, line[:, time:]
  expand = lambda mask: mask.reshape(mask.shape + (1,) * (u.ndim - 2))
  is_real = segments.real(segment_ids)
  document = segments.documents(segment_ids)
  named = jnp.where(is_real, document + 1, 0)
  first = jnp.where(is_real.any(axis=1), jnp.argmax(is_real, axis=1), time)
  put = jax.vmap(lambda row, part, at: jax.lax.dynamic_update_slice_in_dim(row, part, at, axis=0))
  line = put(jnp.concatenate([jnp.zeros_like(history), jnp.where(expand(is_real), u, 0)], axis=1), history, first)
  ids = put(jnp.pad(named, ((0, 0), (ring, 0))), jnp.ones((batch, ring), named.dtype), first)
  last = segments.last_real(segment_ids)
  end = jnp.where(last < 0, time, last + 1)
  position, _ = segments.positions(segment_ids, time, jnp.zeros((batch,), jnp.int32))
  at_end = lambda values: jnp.take_along_axis(values, jnp.maximum(last, 0)[:, None], axis=1)
  keep = (at_end(document) == 0) | (at_end(position) >= jnp.arange(ring - 1, -1, -1)) | (last < 0)[:, None]
  latest = jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, ring, axis=0))(line, end)
  return line, ids, named, jnp.where(expand(keep), latest, 0)
