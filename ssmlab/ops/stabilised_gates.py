"""The stabiliser of exponential gates: a running maximum by which mLSTM's forget and input gates are divided, so that neither overflows."""

import jax
import jax.numpy as jnp

from ssmlab.core import mesh as meshes
from ssmlab.ops import segments, sequence

IMPLEMENTATIONS = ('auto', 'associative', 'sequential')


def stabilised_gates(
    log_forget: jax.Array,
    log_input: jax.Array,
    initial: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    implementation: str = 'auto',
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """m[t] = max(f[t] + m[t-1], i[t]);  returns (f[t] + m[t-1] - m[t], i[t] - m[t], m, last), of which the first two are <= 0.

  They are the logarithms of the decay and of the write of a recurrence whose state is e^-m[t] times that of
  S[t] = e^f[t] S[t-1] + e^i[t] k[t] (x) v[t].

  log_forget: f, [batch, time, heads], natural logarithm, any finite value.  log_input: i, alike.
  initial: m[-1], [batch, heads]; zeros when None.
  segment_ids: int32 [batch, time], see `ops.segments`.  Padding (id 0) passes m on and decays by 1; the first token of every document but
    the call's first sees m[t-1] = 0.
  implementation: 'sequential' is a `lax.scan` over tokens; 'associative' a `lax.associative_scan`, for (max, +) is a semiring and the
    step is linear in it; 'auto' chooses by length and platform.

  Returns [batch, time, heads] three times and m after the last token, [batch, heads], in float32 (float64 where an input is).
  The two logarithms are differentiated as if m were a constant: it divides C, n and what is read of both, and cancels.  What does not
  cancel (an eps, a lower bound) reads the returned m, whose derivative is the true one.
  Raises ValueError on an unknown implementation or on shapes that do not fit.
  Source: xLSTM, arXiv 2405.04517, eq. 15-17 (stated for sLSTM, used for both).
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'implementation={implementation!r} is not one of {", ".join(IMPLEMENTATIONS)}')
  _check_shapes(log_forget, log_input, initial, segment_ids)
  given = [x for x in (log_forget, log_input, initial) if x is not None]
  dtype = jnp.result_type(jnp.float32, *given)
  log_forget, log_input = log_forget.astype(dtype), log_input.astype(dtype)
  batch, time, heads = log_input.shape
  initial = jnp.zeros((batch, heads), dtype) if initial is None else initial.astype(dtype)
  if time == 0:
    return log_forget, log_input, log_input, initial
  floor, is_real, cut = log_input, jnp.ones((1, time, 1), bool), jnp.zeros((1, time, 1), bool)
  shift = log_forget
  if segment_ids is not None:
    is_real, cut = segments.real(segment_ids)[..., None], segments.starts(segment_ids)[..., None]
    # A start sees m = 0 and padding m[t-1]: both are steps of the same form, with -inf for "never" in the semiring.
    shift = jnp.where(is_real, jnp.where(cut, -jnp.inf, log_forget), 0)
    floor = jnp.where(is_real, jnp.where(cut, jnp.maximum(log_forget, log_input), log_input), -jnp.inf)
  (before, m), last = (_over_parts if sequence.parts(time) > 1 else _maxima)(implementation, shift, floor, initial)
  log_decay = jnp.where(is_real, _divided(log_forget, log_forget + jnp.where(cut, 0, before) - m), 0)
  return log_decay, _divided(log_input, log_input - m), m, last


def _divided(log_gate: jax.Array, value: jax.Array) -> jax.Array:
  """`value` with the derivative of `log_gate`.  It is at most 0 but for rounding, since the associative form adds in another order."""
  constant = jax.lax.stop_gradient
  return log_gate - constant(log_gate) + constant(jnp.minimum(value, 0))


def _choose(implementation: str, time: int) -> str:
  """On a CPU the loop wins: [4, 2048, 8] forward 0.28 ms, gradient 2.4 ms; associative 0.56 and 6.9 (2 cores, busy, November 2026)."""
  if implementation != 'auto':
    return implementation
  return 'sequential' if time <= 16 or meshes.platform() == 'cpu' else 'associative'


def _check_shapes(log_forget, log_input, initial, segment_ids) -> None:
  if log_input.ndim != 3:
    raise ValueError(f'log_input has shape {log_input.shape}; expected [batch, time, heads]')
  batch, time, heads = log_input.shape
  expected = {'log_forget': (log_forget, '[batch, time, heads]', log_input.shape), 'initial': (initial, '[batch, heads]', (batch, heads)),
              'segment_ids': (segment_ids, '[batch, time]', (batch, time))}
  for name, (x, axes, shape) in expected.items():
    if x is not None and x.shape != shape:
      raise ValueError(f'{name} has shape {x.shape}; expected {axes} = {shape}')


def _join(left, right):
  return left[0] + right[0], jnp.maximum(right[0] + left[1], right[1])


def _over_parts(implementation: str, shift, floor, initial):
  """`_maxima` where the mesh splits time."""
  def part(tokens, initial):
    last = _scan(implementation, *tokens, jnp.full_like(initial, -jnp.inf))[:, -1]
    _, m = sequence.entering(_join, (jnp.sum(tokens[0], axis=1), last), (jnp.zeros_like(initial), initial))
    return _maxima(implementation, *tokens, m)
  return sequence.on_parts(part, (shift, floor), initial)


def _maxima(implementation: str, shift, floor, initial):
  """((m[t-1], m[t]) of every token, the last m)."""
  m = _scan(implementation, shift, floor, initial)
  return (jnp.concatenate([initial[:, None], m[:, :-1]], axis=1), m), m[:, -1]


def _scan(implementation: str, shift, floor, initial):
  """m[t] = max(shift[t] + m[t-1], floor[t])."""
  if _choose(implementation, shift.shape[1]) == 'sequential':
    def step(m, inputs):
      m = jnp.maximum(inputs[0] + m, inputs[1])
      return m, m
    if shift.shape[1] == 1:                             # decoding: one update, no loop
      return step(initial, (shift[:, 0], floor[:, 0]))[0][:, None]
    time_first = jnp.moveaxis(shift, 1, 0), jnp.moveaxis(floor, 1, 0)
    return jnp.moveaxis(jax.lax.scan(step, initial, time_first)[1], 0, 1)
  floor = floor.at[:, 0].max(shift[:, 0] + initial)
  return jax.lax.associative_scan(_join, (shift, floor), axis=1)[1]
