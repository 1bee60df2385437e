"""RWKV-4's weighted average over the past, in a form that no key can overflow: sums carried as (numerator, denominator, exponent)."""

import functools

import jax
import jax.numpy as jnp

from ssmlab.core import mesh as meshes
from ssmlab.ops import segments, sequence

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
  run = _over_parts if sequence.parts(time) > 1 else _run
  wkv, (exponent, numerator, denominator) = run(implementation, (k, v, is_real, cut), log_decay, bonus, start)
  state = numerator, denominator, jnp.where(denominator == 0, 0, exponent)
  return wkv.astype(out_dtype), state


def _choose(implementation: str, time: int) -> str:
  if implementation != 'auto':
    return implementation
  return 'sequential' if time <= 16 or meshes.platform() == 'cpu' else 'associative'


def _run(implementation, tokens, log_decay, bonus, start):
  k, v, *masks = tokens
  return _average(_choose(implementation, k.shape[1]), k, v, log_decay, bonus, start, *masks)


def _over_parts(implementation, tokens, log_decay, bonus, start):
  """`_run` where the mesh splits time."""
  def part(tokens, shared):
    log_decay, bonus, start = shared
    _, _, is_real, cut = tokens
    nothing = jnp.full_like(start[0], _EMPTY), *(jnp.zeros_like(x) for x in start[1:])
    _, sums = _run(implementation, tokens, log_decay, bonus, nothing)
    stretch = lambda steps, cut: tuple(jnp.broadcast_to(x, (start[0].shape[0], 1)) for x in (steps, cut))
    whole = stretch(jnp.sum(is_real, axis=1).astype(log_decay.dtype), jnp.any(cut, axis=1))
    first = stretch(jnp.zeros((1, 1), log_decay.dtype), jnp.zeros((1, 1), bool))
    before = sequence.entering(_join(log_decay), (*whole, *sums), (*first, *start))
    return _run(implementation, tokens, log_decay, bonus, before[2:])
  return sequence.on_parts(part, tokens, (log_decay, bonus, start))


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


def _along(form: str, log_decay, stretch, read, tokens, start, reverse: bool = False):
  """(what `read` makes of every token and the sums that it finds, sums after the last), from the sums `start` on.

  tokens: a tree of [batch, time, channels or 1].  stretch(token): its one-token stretch.  read(token, sums): a tuple of [batch, channels].
  Both work on each number by itself: 'sequential' calls them in the loop, 'associative' on all tokens at once.
  """
  join, time = _join(log_decay), tokens[0].shape[1]
  nothing = jnp.zeros((1, 1), log_decay.dtype), jnp.zeros((1, 1), bool)

  def found(token, before):
    return read(token, (jnp.where(stretch(token)[1], _EMPTY, before[0]), *before[1:]))
  if form == 'associative' and time > 1:
    flip = lambda tree: jax.tree.map(lambda x: jnp.flip(x, axis=1), tree) if reverse else tree
    steps, cut, *sums = stretch(tokens)
    line = flip((steps, cut, *jnp.broadcast_arrays(*sums)))
    first = tuple(jnp.broadcast_to(x[:, None], (y.shape[0], 1, y.shape[2])) for x, y in zip((*nothing, *start), line))
    line = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), first, line)
    sums = jax.lax.associative_scan(join, line, axis=1)[2:]
    return found(tokens, flip(tuple(x[:, :-1] for x in sums))), tuple(x[:, -1] for x in sums)

  def step(sums, t):
    token = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, t, axis=1, keepdims=False), tokens)
    return join((*nothing, *sums), stretch(token))[2:], found(token, sums)
  if time == 1:                                        # decoding: one update, no loop
    last, results = step(start, 0)
    return tuple(x[:, None] for x in results), last

  # Slices taken and results put down inside the loop, nothing in between stored: at 4 x 16384 x 168, the gradient with everything else computed
  # for all tokens at once took 1.4 times as long and 11 arrays of work memory for 5 (2 cores CPU, November 2026).  Two tokens a turn: RWKV-4 reads
  # 1 x 1024 x 168 in 0.8 of the time of one, and no faster by four.
  def put(carried, t):
    sums, lines = carried
    sums, results = step(sums, t)
    return (sums, tuple(jax.lax.dynamic_update_index_in_dim(line, x, t, axis=1) for line, x in zip(lines, results))), None
  lines = tuple(jnp.zeros((x.shape[0], time, x.shape[1]), x.dtype) for x in jax.eval_shape(step, start, 0)[1])
  (last, results), _ = jax.lax.scan(put, (start, lines), jnp.arange(time), reverse=reverse, unroll=2)
  return results, last


def _read(k, v, bonus, before):
  """(wkv, its scaled denominator, the exponent taken out, weight of the current token)."""
  exponent, numerator, denominator = before
  top = jnp.maximum(exponent, bonus + k)
  past, current = jnp.exp(exponent - top), jnp.exp(bonus + k - top)
  total = past * denominator + current
  return (past * numerator + current * v) / total, total, top, current


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _average(form: str, k, v, log_decay, bonus, start, is_real, cut):
  (wkv,), last = _averages(form, k, v, log_decay, bonus, start, is_real, cut, lambda wkv, before: (wkv,))
  return wkv, last


def _averages(form, k, v, log_decay, bonus, start, is_real, cut, keep):
  """(what `keep` keeps of every token's wkv and the sums it finds, sums after the last)."""
  def stretch(token):
    k, v, is_real, cut = token
    steps = is_real.astype(k.dtype)
    return steps, cut, *_without_padding(k, v, is_real), steps

  def read(token, before):
    k, v, is_real, _ = token
    return keep(jnp.where(is_real, _read(*_without_padding(k, v, is_real), bonus, before)[0], 0), before)
  return _along(form, log_decay, stretch, read, (k, v, is_real, cut), start)


def _without_padding(k, v, is_real):
  return jnp.where(is_real, k, _EMPTY), jnp.where(is_real, v, 0)


def _average_forward(form, k, v, log_decay, bonus, start, is_real, cut):
  (wkv, *before), last = _averages(form, k, v, log_decay, bonus, start, is_real, cut, lambda wkv, before: (wkv, *before))
  return (wkv, last), (k, v, log_decay, bonus, start, is_real, cut, before, last[0])


def _average_backward(form, residuals, gradients):
  """With G the adjoint of the sums after a token: what later tokens read of them, each over its own denominator e^top * total."""
  k, v, log_decay, bonus, start, is_real, cut, before, last = residuals
  d_wkv, (_, d_numerator, d_denominator) = gradients
  next_cut = jnp.concatenate([cut[:, 1:], jnp.zeros_like(cut[:, :1])], axis=1)

  def again(token):
    k, v, d_wkv, is_real, _, *before = token
    k, v = _without_padding(k, v, is_real)
    wkv, total, top, current = _read(k, v, bonus, before)
    return k, v, wkv, top, current, jnp.where(is_real, d_wkv, 0) / total, before

  def stretch(token):
    _, _, wkv, top, _, read, _ = again(token)
    is_real, next_cut = token[3:5]
    return is_real.astype(read.dtype), next_cut, jnp.where(is_real, -top, _EMPTY), read, -read * wkv

  def gradient(token, later):
    k, v, wkv, _, current, read, before = again(token)
    exponent, one, other = later
    written, direct = jnp.exp(k + exponent), current * read        # both weights are at most 1: a denominator holds every term
    d_bonus = direct * (v - wkv)
    decayed = token[3] * jnp.exp(log_decay + before[0] + exponent) * (one * before[1] + other * before[2])
    return written * (one * v + other) + d_bonus, written * one + direct, decayed, d_bonus
  tokens = (k, v, d_wkv, is_real, next_cut, *before)
  (d_k, d_v, decayed, d_bonus), first = _along(form, log_decay, stretch, gradient, tokens, (-last, d_numerator, d_denominator), reverse=True)
  scale = jnp.where(cut[:, 0], 0, jnp.exp(start[0] + first[0]))
  d_one, d_other = scale * first[1], scale * first[2]
  d_start = start[1] * d_one + start[2] * d_other, d_one, d_other
  over_tokens = lambda x: jnp.sum(x, axis=(0, 1))
  return d_k, d_v, over_tokens(decayed), over_tokens(d_bonus), d_start, None, None


_average.defvjp(_average_forward, _average_backward)
