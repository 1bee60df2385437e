"""The elementwise linear recurrence h[t] = a[t] * h[t-1] + b[t], real or complex.

S4D, S5, LRU, RG-LRU, HGRN, minGRU, Mamba-1 and modal filters stand on it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ssmlab.core import mesh as meshes
from ssmlab.ops import segments, sequence

IMPLEMENTATIONS = ('auto', 'associative', 'blocked', 'sequential')
_BLOCK = 256

# Inside, a number is a tuple of real arrays: (real,) or (real, imaginary).  XLA compiles a complex associative scan on CPU about seven
# times slower than a real one, and complex arithmetic is not available everywhere on TPU.
Numbers = tuple[jax.Array, ...]
Array = jax.Array | tuple[jax.Array, jax.Array]


def diagonal_recurrence(
    a: Array,
    b: Array,
    initial: Array | None = None,
    segment_ids: jax.Array | None = None,
    reverse: bool = False,
    implementation: str = 'auto',
) -> tuple[Any, Any]:
  """h[t] = a[t] * h[t-1] + b[t], elementwise; returns (h, last).

  a: the decay itself, not its logarithm; broadcasts against b ([batch, time, ...], [batch, time, 1], [channels], a scalar).
  b: [batch, time, ...].
  initial: h[-1], [batch, ...]; zeros when None.
  segment_ids: int32 [batch, time], see `ops.segments`.  Padding (id 0) passes h through unchanged; the first token of every document but
    the call's first sees h[t-1] = 0.
  reverse: h[t] = a[t] * h[t+1] + b[t], from the right end; `initial` then enters at the right, and a document begins at its last token.
  implementation: 'sequential' is the definition, a loop over time; 'associative' is `lax.associative_scan`; 'blocked' is associative
    inside blocks of 256 and a `lax.scan` over the blocks, with temporary memory bounded by one block; 'auto' chooses by length and platform.

  Each of a, b and initial is a real array, a complex array or a pair (real, imaginary) of real arrays; where one of them is complex the
  result is complex, as a pair if b is a pair and as a complex array otherwise.
  Returns h [batch, time, ...] in b's precision and last [batch, ...], the h at the end reached, in float32 (float64 for float64 inputs).
  Arithmetic is in float32, or float64 where an input is.  There is a reverse-mode gradient only, which is the same
  recurrence run the other way: g[t] = dh[t] + a[t+1] g[t+1], db = g, da[t] = g[t] h[t-1] (conjugated where complex).

  Raises ValueError on an unknown implementation or on shapes that do not fit.
  Source: Blelloch, Prefix sums and their applications (1990), section 1.4; gradient as in Martin & Cundy, arXiv 1709.04057.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'implementation={implementation!r} is not one of {", ".join(IMPLEMENTATIONS)}')
  numbers = {'a': _split(a), 'b': _split(b)} | ({} if initial is None else {'initial': _split(initial)})
  dtype = jnp.result_type(jnp.float32, *(x for parts in numbers.values() for x in parts))
  width = max(len(parts) for parts in numbers.values())
  out_dtype = numbers['b'][0].dtype
  numbers = {name: _widen(tuple(x.astype(dtype) for x in parts), width) for name, parts in numbers.items()}
  decay, write = numbers['a'], numbers['b']
  _check_shapes(decay[0], write[0], numbers.get('initial', (None,))[0], segment_ids)
  shape = write[0].shape
  start = numbers.get('initial', tuple(jnp.zeros(shape[:1] + shape[2:], dtype) for _ in write))
  decay = tuple(_ranked(x, len(shape)) for x in decay)
  if segment_ids is not None:
    decay, write = _apply_segments(decay, write, segment_ids, reverse)
  h, last = _over_parts(implementation, reverse, decay, write, start) if sequence.parts(shape[1]) > 1 else _run(implementation, reverse, decay, write, start)
  h = tuple(x.astype(out_dtype) for x in h)
  return (h, last) if isinstance(b, tuple) else (_join(h), _join(last))


def _choose(implementation: str, length: int) -> str:
  """On CPU the loop wins at every length: [4, 2048, 1024] forward 47 ms, gradient 130 ms; associative 92 and 236; blocked 150 and 247
  (2 cores, busy, November 2026).  On accelerators, not measured, loops of tiny steps lose; blocks bound the memory of long inputs."""
  if implementation != 'auto':
    return implementation
  if length <= 16 or meshes.platform() == 'cpu':
    return 'sequential'
  return 'associative' if length <= 4096 else 'blocked'


def _split(x: Array) -> Numbers:
  if isinstance(x, tuple):
    return tuple(jnp.asarray(part) for part in x)
  x = jnp.asarray(x)
  return (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)


def _widen(parts: Numbers, width: int) -> Numbers:
  return parts if len(parts) == width else (parts[0], jnp.zeros_like(parts[0]))


def _join(parts: Numbers) -> jax.Array:
  if len(parts) == 1:
    return parts[0]
  dtype = jnp.result_type(jnp.float32, parts[0])
  return jax.lax.complex(parts[0].astype(dtype), parts[1].astype(dtype))


def _check_shapes(a, b, initial, segment_ids) -> None:
  if b.ndim < 2:
    raise ValueError(f'b has shape {b.shape}; expected [batch, time, ...]')
  fits = a.ndim <= b.ndim and all(n in (1, m) for n, m in zip(a.shape[::-1], b.shape[::-1]))
  if not fits:
    raise ValueError(f'a has shape {a.shape}; expected one that broadcasts to b, {b.shape}')
  if initial is not None and initial.shape != b.shape[:1] + b.shape[2:]:
    raise ValueError(f'initial has shape {initial.shape}; expected [batch, ...] = {b.shape[:1] + b.shape[2:]}')
  if segment_ids is not None and segment_ids.shape != b.shape[:2]:
    raise ValueError(f'segment_ids has shape {segment_ids.shape}; expected [batch, time] = {b.shape[:2]}')


def _ranked(a: jax.Array, rank: int) -> jax.Array:
  """Gives `a` b's rank; axes of size 1 stay, so that a shared decay is stepped once."""
  return a.reshape((1,) * (rank - a.ndim) + a.shape)


def _apply_segments(a: Numbers, b: Numbers, segment_ids: jax.Array, reverse: bool) -> tuple[Numbers, Numbers]:
  flip = functools.partial(jnp.flip, axis=1) if reverse else lambda x: x
  begins = flip(segments.starts(flip(segment_ids)))
  expand = lambda mask: mask.reshape(mask.shape + (1,) * (b[0].ndim - 2))
  begins, is_real = expand(begins), expand(segments.real(segment_ids))
  unit = (1.0, 0.0)                                     # the number one, as real and imaginary part
  a = tuple(jnp.where(begins, 0.0, jnp.where(is_real, x, one)).astype(x.dtype) for x, one in zip(a, unit))
  return a, tuple(jnp.where(is_real, x, 0.0).astype(x.dtype) for x in b)


def _multiply(x: Numbers, y: Numbers) -> Numbers:
  if len(x) == 1:
    return (x[0] * y[0],)
  return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]


def _add(x: Numbers, y: Numbers) -> Numbers:
  return tuple(p + q for p, q in zip(x, y))


def _conjugate(x: Numbers) -> Numbers:
  return x if len(x) == 1 else (x[0], -x[1])


def _run(implementation: str, reverse: bool, a: Numbers, b: Numbers, initial: Numbers) -> tuple[Numbers, Numbers]:
  """(h, last)."""
  time = b[0].shape[1]
  if not time:
    return b, initial
  form = _choose(implementation, time)
  if form == 'sequential':
    h = _loop(reverse, a, b, initial)
  else:
    h = _scan(form, reverse, tuple(jnp.broadcast_to(x, (x.shape[0], time, *x.shape[2:])) for x in a), b, initial)
  return h, _last(h, reverse)


def _last(h: Numbers, reverse: bool) -> Numbers:
  return tuple(x[:, 0 if reverse else -1] for x in h)


def _over_parts(implementation: str, reverse: bool, a: Numbers, b: Numbers, initial: Numbers) -> tuple[Numbers, Numbers]:
  """`_run` where the mesh splits time: with h of a part from zero and the product of its decays, h + product * (what enters)."""
  def part(tokens, initial):
    a, b = tokens
    nothing = tuple(jnp.zeros_like(x) for x in initial)
    h, last = _run(implementation, reverse, a, b, nothing)
    one = (jnp.ones_like(initial[0]), *nothing[1:])
    reach, over = _run(implementation, reverse, a, tuple(jnp.zeros_like(x) for x in b), one)
    _, start = sequence.entering(_combine, (over, last), (nothing, initial), reverse)
    h = _add(h, _multiply(reach, tuple(x[:, None] for x in start)))
    return h, _last(h, reverse)
  return sequence.on_parts(part, (a, b), initial, reverse)


# The loop takes slices of what lies in memory and puts results down where they belong: no copies with time first, forwards and backwards.
# Tokens in one turn, of real and of complex numbers: real ones fuse into two kernels a token, [1, 4096, 384] 0.14 microseconds a token, 0.49 by
# four; complex ones into eight, mostly for what a turn hands on: [1, 4096, 256] 1.4, by four 0.44 (2 cores CPU, November 2026).
_UNROLL = {1: 1, 2: 4}


def _at(numbers: Numbers, t) -> Numbers:
  """What stands at t, or at every t."""
  return tuple(x[:, 0] if x.shape[1] == 1 else jax.lax.dynamic_index_in_dim(x, t, axis=1, keepdims=False) for x in numbers)


def _put(numbers: Numbers, values: Numbers, t) -> Numbers:
  return tuple(jax.lax.dynamic_update_index_in_dim(x, value, t, axis=1) for x, value in zip(numbers, values))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loop(reverse: bool, a: Numbers, b: Numbers, initial: Numbers) -> Numbers:
  step = lambda h, t: _add(_multiply(_at(a, t), h), _at(b, t))
  time = b[0].shape[1]
  if time == 1:                                         # decoding: one update, no loop
    return tuple(x[:, None] for x in step(initial, 0))

  def body(carried, t):
    h = step(carried[0], t)
    return (h, _put(carried[1], h, t)), None
  return jax.lax.scan(body, (initial, tuple(jnp.zeros_like(x) for x in b)), jnp.arange(time), reverse=reverse, unroll=_UNROLL[len(b)])[0][1]


def _loop_forward(reverse, a, b, initial):
  h = _loop(reverse, a, b, initial)
  return h, (a, h, initial)


def _loop_backward(reverse, residuals, dh):
  a, h, initial = residuals
  time = h[0].shape[1]
  first, before = (time - 1, 1) if reverse else (0, -1)

  def body(carried, t):
    later, da, db = carried
    grad = _add(_at(dh, t), later)
    earlier = tuple(jnp.where(t == first, x, y) for x, y in zip(initial, _at(h, jnp.clip(t + before, 0, time - 1))))
    here = tuple(_sum_to(x, y.shape[:1] + y.shape[2:]) for x, y in zip(_multiply(_conjugate(earlier), grad), a))
    da = _put(da, here, t) if a[0].shape[1] > 1 else tuple(x + y[:, None] for x, y in zip(da, here))
    return (_multiply(_conjugate(_at(a, t)), grad), da, _put(db, grad, t)), None
  zeros = lambda numbers: tuple(jnp.zeros_like(x) for x in numbers)
  (later, da, db), _ = jax.lax.scan(body, (zeros(initial), zeros(a), zeros(h)), jnp.arange(time), reverse=not reverse, unroll=_UNROLL[len(h)])
  return da, db, later


_loop.defvjp(_loop_forward, _loop_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(form: str, reverse: bool, a: Numbers, b: Numbers, initial: Numbers) -> Numbers:
  return (_associative if form == 'associative' else _blocked)(reverse, a, b, initial)


def _scan_forward(form, reverse, a, b, initial):
  h = _scan(form, reverse, a, b, initial)
  return h, (a, h, initial)


def _scan_backward(form, reverse, residuals, dh):
  a, h, initial = residuals
  # Shifted against time: the decay that carried h[t] on, and the h that was decayed at t.
  later = _conjugate(tuple(_shift(x, jnp.zeros_like(x[:, 0]), not reverse) for x in a))
  earlier = _conjugate(tuple(_shift(x, first, reverse) for x, first in zip(h, initial)))
  grad = _scan(form, not reverse, later, dh, tuple(jnp.zeros_like(x) for x in initial))
  first = -1 if reverse else 0
  da = tuple(_sum_to(x, y.shape) for x, y in zip(_multiply(earlier, grad), a))
  return da, grad, _multiply(_conjugate(tuple(x[:, first] for x in a)), tuple(x[:, first] for x in grad))


_scan.defvjp(_scan_forward, _scan_backward)


def _shift(x: jax.Array, fill: jax.Array, to_left: bool) -> jax.Array:
  """x[t+1] at t (to_left) or x[t-1] at t, with `fill` where there is no neighbour."""
  parts = (x[:, 1:], fill[:, None]) if to_left else (fill[:, None], x[:, :-1])
  return jnp.concatenate(parts, axis=1)


def _sum_to(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return jnp.sum(x, axis=tuple(i for i, n in enumerate(shape) if n == 1 != x.shape[i]), keepdims=True)


def _combine(earlier, later):
  return _multiply(earlier[0], later[0]), _add(_multiply(later[0], earlier[1]), later[1])


def _associative(reverse: bool, a: Numbers, b: Numbers, initial: Numbers) -> Numbers:
  first = b[0].shape[1] - 1 if reverse else 0
  entering = _multiply(tuple(x[:, first] for x in a), initial)
  b = tuple(x.at[:, first].add(y) for x, y in zip(b, entering))
  return jax.lax.associative_scan(_combine, (a, b), axis=1, reverse=reverse)[1]


def _blocked(reverse: bool, a: Numbers, b: Numbers, initial: Numbers) -> Numbers:
  time = b[0].shape[1]
  blocks = -(-time // _BLOCK)
  padding = blocks * _BLOCK - time                      # zeros after the end: they change nothing that is kept

  def cut(x):
    x = jnp.pad(x, ((0, 0), (padding, 0) if reverse else (0, padding)) + ((0, 0),) * (x.ndim - 2))
    return meshes.whole(jnp.moveaxis(x.reshape(x.shape[:1] + (blocks, _BLOCK) + x.shape[2:]), 1, 0), 0)

  def one_block(h, inputs):
    h = _associative(reverse, *inputs, h)
    return tuple(x[:, 0 if reverse else -1] for x in h), h

  _, h = jax.lax.scan(one_block, initial, jax.tree.map(cut, (a, b)), reverse=reverse)
  join = lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1:2] + (blocks * _BLOCK,) + x.shape[3:])
  return tuple(join(x)[:, padding:] if reverse else join(x)[:, :time] for x in h)
