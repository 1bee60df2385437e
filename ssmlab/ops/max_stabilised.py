"""RWKV-4's weighted average over the past, in a form that no key can overflow: sums carried as (numerator, denominator, exponent)."""

import functools

import jax
import jax.numpy as jnp

from ssmlab.ops import segments

IMPLEMENTATIONS = ('auto', 'associative', 'sequential')
State = tuple[jax.Array, jax.Array, jax.Array]
# Exponent of an empty sum.  Finite, because two of -inf would meet as -inf - -inf.
_EMPTY = -1e30


def weighted_average(
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    bonus: jax.Array,
    initial: State | None = None,
    segment_ids: jax.Array | None = None,
    implementation: str = 'auto',
) -> tuple[jax.Array, State]:
  """wkv[t] = (sum over i < t of e^((t-1-i) w + k[i]) v[i]  +  e^(u + k[t]) v[t]) / (the same sums without v); returns (wkv, state).

  k, v: [batch, time, channels]; k is an exponent of any finite size.
  log_decay: w, [channels], natural logarithm, <= 0.  bonus: u, [channels], added to the current token's exponent.
  initial: (numerator, denominator, exponent), each [batch, channels]: the true sums are numerator * e^exponent and denominator *
    e^exponent.  A row with denominator 0, such as zeros, has read nothing, whatever its exponent.  None is zeros.
  segment_ids: int32 [batch, time], see `ops.segments`.  Padding (id 0) leaves the state untouched and its wkv is 0; the first token of
    every document but the call's first finds an empty state.
  implementation: 'sequential' is a `lax.scan` over tokens; 'associative' is `lax.associative_scan`; 'auto' chooses by length and platform.

  Returns wkv in v's dtype and the state after the last token in float32 (float64, as the arithmetic, where an input is float64).
  Reverse-mode gradients only: the adjoint of the two sums is the same recurrence run the other way, with exponents of the other sign.
  The gradient of a final state is that of the sums it stands for: right for any function that a common factor moved between exponent
  and sums leaves alone, which is all that a later call computes.

  Raises ValueError on an unknown implementation or on shapes that do not fit.
  Source: RWKV, arXiv 2305.13048, eq. 16; BlinkDL/RWKV-LM, RWKV-v4neo/cuda/wkv_cuda.cu.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'implementation={implementation!r} is not one of {", ".join(IMPLEMENTATIONS)}')
  _check_shapes(k, v, log_decay, bonus, initial, segment_ids)
  batch, time, channels = k.shape
  dtype, out_dtype = jnp.result_type(jnp.float32, k, v, log_decay, bonus, *(initial or ())), v.dtype
  state = tuple(jnp.zeros((batch, channels), dtype) for _ in range(3)) if initial is None else tuple(x.astype(dtype) for x in initial)
  if time == 0:
    return v, state
  k, v, log_decay, bonus = (x.astype(dtype) for x in (k, v, log_decay, bonus))
  is_real, cut = jnp.ones((1, time, 1), bool), jnp.zeros((1, time, 1), bool)
  if segment_ids is not None:
    is_real, cut = segments.real(segment_ids)[..., None], segments.starts(segment_ids)[..., None]
  numerator, denominator, exponent = state
  start = jnp.where(denominator == 0, _EMPTY, exponent), numerator, denominator
  wkv, (exponent, numerator, denominator) = _average(_choose(implementation, time), k, v, log_decay, bonus, start, is_real, cut)
  state = numerator, denominator, jnp.where(denominator == 0, 0, exponent)
  return wkv.astype(out_dtype), state


def _choose(implementation: str, time: int) -> str:
  if implementation != 'auto':
    return implementation
  return 'sequential' if time <= 16 or jax.default_backend() == 'cpu' else 'associative'


def _check_shapes(k, v, log_decay, bonus, initial, segment_ids) -> None:
  if k.ndim != 3:
    raise ValueError(f'k has shape {k.shape}; expected [batch, time, channels]')
  batch, time, channels = k.shape
  expected = [('v', v, '[batch, time, channels]', k.shape), ('log_decay', log_decay, '[channels]', (channels,)),
              ('bonus', bonus, '[channels]', (channels,)), ('segment_ids', segment_ids, '[batch, time]', (batch, time))]
  names = ('numerator', 'denominator', 'exponent')
  expected += [(f'initial {name}', x, '[batch, channels]', (batch, channels)) for name, x in zip(names, initial or ())]
  for name, x, axes, shape in expected:
    if x is not None and x.shape != shape:
      raise ValueError(f'{name} has shape {x.shape}; expected {axes} = {shape}')


# Inside, a pair of sums is (exponent, one, other), each [batch, channels]; a stretch of tokens is the same with (steps, cut) in front:
# by how many steps it decays what came before, or whether it forgets it.


def _join(log_decay):
  """The associative operator: the stretch `left`, then the stretch `right`."""
  def join(left, right):
    steps, cut, exponent, one, other = right
    before = jnp.where(cut, _EMPTY, left[2] + steps * log_decay)
    top = jnp.maximum(before, exponent)
    keep, write = jnp.exp(before - top), jnp.exp(exponent - top)
    return left[0] + steps, left[1] | cut, top, keep * left[3] + write * one, keep * left[4] + write * other
  return join


def _carried(form: str, log_decay, stretches, start, reverse: bool = False):
  """(sums that every token finds, sums after the last) of one-token stretches [batch, time, channels or 1], from `start` on."""
  join = _join(log_decay)
  nothing = jnp.zeros((1, 1), log_decay.dtype), jnp.zeros((1, 1), bool)

  def step(sums, stretch):
    return join((*nothing, *sums), stretch)[2:], sums
  if stretches[2].shape[1] == 1:                        # decoding: one update, no loop
    last, before = step(start, jax.tree.map(lambda x: x[:, 0], stretches))
    before = tuple(x[:, None] for x in before)
  elif form == 'sequential':
    # Slices taken inside the loop: 8% less of the gradient's time than copies with time first (2 cores CPU, busy, November 2026).
    at = lambda t: jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, t, axis=1, keepdims=False), stretches)
    last, before = jax.lax.scan(lambda sums, t: step(sums, at(t)), start, jnp.arange(stretches[0].shape[1]), reverse=reverse)
    before = tuple(jnp.moveaxis(x, 0, 1) for x in before)
  else:
    flip = lambda tree: jax.tree.map(lambda x: jnp.flip(x, axis=1), tree) if reverse else tree
    stretches = (*stretches[:2], *jnp.broadcast_arrays(*stretches[2:]))
    first = tuple(jnp.broadcast_to(x[:, None], (y.shape[0], 1, y.shape[2])) for x, y in zip((*nothing, *start), stretches))
    line = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), first, flip(stretches))
    sums = jax.lax.associative_scan(join, line, axis=1)[2:]
    before, last = flip(tuple(x[:, :-1] for x in sums)), tuple(x[:, -1] for x in sums)
  return (jnp.where(stretches[1], _EMPTY, before[0]), *before[1:]), last


def _read(k, v, bonus, before):
  """(wkv, its scaled denominator, the exponent taken out, weight of the current token)."""
  exponent, numerator, denominator = before
  top = jnp.maximum(exponent, bonus + k)
  past, current = jnp.exp(exponent - top), jnp.exp(bonus + k - top)
  total = past * denominator + current
  return (past * numerator + current * v) / total, total, top, current


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _average(form: str, k, v, log_decay, bonus, start, is_real, cut):
  return _average_forward(form, k, v, log_decay, bonus, start, is_real, cut)[0]


def _without_padding(k, v, is_real):
  return jnp.where(is_real, k, _EMPTY), jnp.where(is_real, v, 0)


def _average_forward(form, given_k, given_v, log_decay, bonus, start, is_real, cut):
  k, v = _without_padding(given_k, given_v, is_real)
  steps = is_real.astype(k.dtype)
  before, last = _carried(form, log_decay, (steps, cut, k, v, steps), start)
  wkv = jnp.where(is_real, _read(k, v, bonus, before)[0], 0)
  return (wkv, last), (given_k, given_v, log_decay, bonus, start, is_real, cut, before, last[0])      # the masks' arrays are not stored


def _average_backward(form, residuals, gradients):
  """With G the adjoint of the sums after a token: what later tokens read of them, each over its own denominator e^top * total."""
  k, v, log_decay, bonus, start, is_real, cut, before, last = residuals
  d_wkv, (_, d_numerator, d_denominator) = gradients
  k, v = _without_padding(k, v, is_real)
  wkv, total, top, current = _read(k, v, bonus, before)
  read = jnp.where(is_real, d_wkv, 0) / total
  next_cut = jnp.concatenate([cut[:, 1:], jnp.zeros_like(cut[:, :1])], axis=1)
  stretches = is_real.astype(k.dtype), next_cut, jnp.where(is_real, -top, _EMPTY), read, -read * wkv
  (exponent, one, other), first = _carried(form, log_decay, stretches, (-last, d_numerator, d_denominator), reverse=True)
  written, direct = jnp.exp(k + exponent), current * read          # both weights are at most 1: a denominator holds every term
  d_bonus = direct * (v - wkv)
  d_v, d_k = written * one + direct, written * (one * v + other) + d_bonus
  decayed = stretches[0] * jnp.exp(log_decay + before[0] + exponent) * (one * before[1] + other * before[2])
  scale = jnp.exp(start[0] + first[0])
  d_one, d_other = scale * first[1], scale * first[2]
  d_start = start[1] * d_one + start[2] * d_other, d_one, d_other
  over_tokens = lambda x: jnp.sum(x, axis=(0, 1))
  return d_k, d_v, over_tokens(decayed), over_tokens(d_bonus), d_start, None, None


_average.defvjp(_average_forward, _average_backward)
