"""sLSTM's recurrence: gates that read the last output, so that time cannot be taken in parallel."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssmlab.core.mesh import constrain
from ssmlab.ops import segments


class State(NamedTuple):
  """h: output; c: cell; n: normaliser; m: stabiliser, by whose exponential c and n are divided.  [batch, heads, head_dim] each.

  Zeros mean that nothing has been read: after any token n is at least about 1.
  """
  h: jax.Array
  c: jax.Array
  n: jax.Array
  m: jax.Array


def slstm_recurrence(
    gates: jax.Array,
    recurrent: jax.Array,
    initial: State | None = None,
    segment_ids: jax.Array | None = None,
    exponential_forget: bool = False,
) -> tuple[jax.Array, State]:
  """h[t] = sigmoid(o) c[t] / n[t],  c[t] = f c[t-1] + exp(i) tanh(z),  n[t] = f n[t-1] + exp(i);  returns (h, state).

  i, f, z, o = gates[t] + h[t-1] R, R block-diagonal over heads; f is then taken through the sigmoid or the exponential.
  gates: [batch, time, 4, heads, head_dim], what the inputs and the biases give i, f, z and o, in this order.
  recurrent: R, [heads, head_dim (of h), 4, head_dim].
  segment_ids: int32 [batch, time], see `ops.segments`.  Padding (id 0) leaves the state untouched and its h is 0; the first token of every
    document but the call's first finds an empty state.
  exponential_forget: exp in place of the sigmoid on f; the stabiliser keeps either finite.

  Returns h [batch, time, heads, head_dim] in gates' dtype and the state after the last token in float32.  Arithmetic is float32 (float64
  where an input is).  Reverse-mode gradients only: one reverse loop over states that the forward pass kept, with R's gradient as one
  product over all tokens.  m counts as a constant there, since c / n does not depend on it: the gradient of a final state is that of the
  sums c e^m and n e^m it stands for, right for all that a later call computes.

  Raises ValueError on shapes that do not fit.
  Source: xLSTM, arXiv 2405.04517, eq. 8-18; NX-AI/xlstm, xlstm/blocks/slstm/src/vanilla/slstm.py.
  """
  _check_shapes(gates, recurrent, initial, segment_ids)
  batch, time, _, heads, size = gates.shape
  dtype = jnp.result_type(jnp.float32, gates, recurrent, *(initial or ()))
  start = State(*(jnp.zeros((batch, heads, size), dtype) if initial is None else x.astype(dtype) for x in (initial or range(4))))
  if time == 0:
    return jnp.zeros((batch, 0, heads, size), gates.dtype), start
  is_real, cut = jnp.ones((batch, time), bool), jnp.zeros((batch, time), bool)
  if segment_ids is not None:
    is_real, cut = segments.real(segment_ids), segments.starts(segment_ids)
  # Nothing of a part can be said without the one before it: every device takes whole rows of some heads.
  gates, recurrent = constrain(gates, 'batch', None, None, 'row_heads', None), constrain(recurrent, 'row_heads', None, None, None)
  is_real, cut = (constrain(mask, 'batch', None) for mask in (is_real, cut))
  time_first = lambda x: jnp.moveaxis(x, 1, 0)
  masks = tuple(time_first(mask)[..., None, None] for mask in (is_real, cut))
  h, state = _recurrence(exponential_forget, time_first(gates), recurrent.astype(dtype), start, masks)
  return constrain(jnp.moveaxis(h, 0, 1), 'batch', None, 'row_heads', None).astype(gates.dtype), state


def _check_shapes(gates, recurrent, initial, segment_ids) -> None:
  if gates.ndim != 5 or gates.shape[2] != 4:
    raise ValueError(f'gates has shape {gates.shape}; expected [batch, time, 4, heads, head_dim]')
  batch, time, _, heads, size = gates.shape
  expected = [('recurrent', recurrent, '[heads, head_dim, 4, head_dim]', (heads, size, 4, size)), ('segment_ids', segment_ids, '[batch, time]', (batch, time))]
  expected += [(f'initial.{name}', x, '[batch, heads, head_dim]', (batch, heads, size)) for name, x in zip(State._fields, initial or ())]
  for name, x, axes, shape in expected:
    if x is not None and x.shape != shape:
      raise ValueError(f'{name} has shape {x.shape}; expected {axes} = {shape}')


def _cell(exponential: bool, raw: jax.Array, c: jax.Array, n: jax.Array, m: jax.Array) -> State:
  """One step for one token, elementwise.  raw: [batch, 4, heads, head_dim]."""
  i, f, z, o = (raw[:, gate] for gate in range(4))
  log_forget = f if exponential else jax.nn.log_sigmoid(f)
  empty = n == 0                                              # then m says nothing, and exp(log_forget + m - top) might overflow
  top = jax.lax.stop_gradient(jnp.where(empty, i, jnp.maximum(log_forget + m, i)))
  forget = jnp.where(empty, 0, jnp.exp(jnp.where(empty, 0, log_forget + m - top)))
  write = jnp.exp(i - top)
  c, n = forget * c + write * jnp.tanh(z), forget * n + write
  return State(jax.nn.sigmoid(o) * c / n, c, n, top)


def _raw(gates, recurrent, h):
  return gates.astype(h.dtype) + jnp.einsum('bhi,higj->bghj', h, recurrent)


def _choose(mask, one, other):
  return State(*(jnp.where(mask, x, y) for x, y in zip(one, other)))


def _loop(exponential, gates, recurrent, start, masks, keep):
  """(what `keep` takes of every token's state, the last state), time first.  A token that is cut off from the past finds zeros."""
  def step(state, inputs):
    gates, is_real, cut = inputs
    before = State(*(jnp.where(cut, 0, x) for x in state))
    after = _choose(is_real, _cell(exponential, _raw(gates, recurrent, before.h), before.c, before.n, before.m), state)
    return after, keep(before, after, is_real)
  last, kept = jax.lax.scan(step, start, (gates, *masks))
  return kept, last


def _output(after, is_real):
  return jnp.where(is_real, after.h, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(exponential, gates, recurrent, start, masks):
  return _loop(exponential, gates, recurrent, start, masks, lambda before, after, is_real: _output(after, is_real))


def _forward(exponential, gates, recurrent, start, masks):
  (h, before), last = _loop(exponential, gates, recurrent, start, masks, lambda before, after, is_real: (_output(after, is_real), before))
  return (h, last), (gates, recurrent, before, masks)


def _backward(exponential, residuals, cotangents):
  gates, recurrent, before, masks = residuals
  d_output, d_last = cotangents

  def step(d_state, inputs):
    gates, before, is_real, cut, d_output = inputs
    d_after = State(*(jnp.where(is_real, x, 0) for x in d_state))
    d_after = d_after._replace(h=d_after.h + jnp.where(is_real, d_output, 0))
    _, pull = jax.vjp(lambda raw, c, n: _cell(exponential, raw, c, n, before.m), _raw(gates, recurrent, before.h), before.c, before.n)
    d_raw, d_c, d_n = pull(d_after)
    d_before = State(jnp.einsum('bghj,higj->bhi', d_raw, recurrent), d_c, d_n, jnp.zeros_like(d_c))
    d_before = State(*(jnp.where(cut, 0, x) for x in d_before))
    return _choose(is_real, d_before, d_state), d_raw
  d_start, d_raw = jax.lax.scan(step, d_last, (gates, before, *masks, d_output), reverse=True)
  d_recurrent = jnp.einsum('tbhi,tbghj->higj', before.h, d_raw)
  return d_raw.astype(gates.dtype), d_recurrent, d_start._replace(m=jnp.zeros_like(d_start.m)), None


_recurrence.defvjp(_forward, _backward)
