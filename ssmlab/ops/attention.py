"""Softmax attention over packed documents, causal or both ways, with a key/value cache.  Attention Is All You Need, arXiv 1706.03762, eq. 1.

Grouped heads (arXiv 2305.13245): query head h reads key/value head h // (heads / kv_heads).
ALiBi (arXiv 2108.12409): minus slope * |distance| is added to every score; without a causal mask the absolute value matters.
Queries go block by block and the backward pass computes a block's weights again from the logarithm of their sum, so that memory grows with the
length and not with its square (FlashAttention, arXiv 2205.14135, algorithm 4, one level up: here a block still sees all of its keys at once).
The gradient is written out: there is none of second order, and no forward mode.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ssmlab.core import mesh as meshes
from ssmlab.ops import fused_attention, segments, sequence

Slopes = tuple[float, ...] | None


def alibi_slopes(heads: int) -> tuple[float, ...]:
  """Slope of every head: 2^(-8 h / heads), h = 1..heads, for a power of two; else those of the power of two below, then every second one
  of twice that power.  Train Short, Test Long, arXiv 2108.12409, section 3; author code ofirpress/attention_with_linear_biases."""
  power = 1 << (heads.bit_length() - 1)
  geometric = lambda n: [2.0 ** (-8 * h / n) for h in range(1, n + 1)]
  return tuple(geometric(power) + geometric(2 * power)[::2][:heads - power])


def attend(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool = True, window: int | None = None, slopes: Slopes = None,
           segment_ids: jax.Array | None = None, implementation: str = 'xla') -> jax.Array:
  """softmax(q k^T / sqrt(head_dim) - slope * |i - j| + mask) v of one whole sequence.

  q: [batch, time, heads, head_dim].  k, v: [batch, time, kv_heads, head_dim].
  window: each query sees the last `window` keys, itself included (and as many later ones where not causal).
  slopes: one per query head, or None.
  segment_ids: int32 [batch, time]; a token sees its own document only; padding sees padding, so that no row is empty.
  implementation: 'xla', here and everywhere; 'splash' (TPU) or 'cudnn' (GPU), see ops.fused_attention.
  Returns [batch, time, heads, head_dim] in v's dtype.  Raises ValueError where kv_heads does not divide heads, and for an implementation that
  this platform has not or that cannot do what is asked.
  """
  _check_heads(q, k)
  batch, time = q.shape[:2]
  index = jnp.broadcast_to(jnp.arange(time), (batch, time))
  run = jnp.zeros((batch, time), jnp.int32)
  if segment_ids is not None:
    run = segments.documents(segment_ids) * 2 + ~segments.real(segment_ids)      # padding between documents is a run of its own
  places = index, run
  if implementation != 'xla':
    fused_attention.check(implementation)
    packed = dict(causal=causal, window=window, segments=None if segment_ids is None else run)
    if implementation == 'cudnn':
      return fused_attention.cudnn(q, k, v, slopes=slopes, **packed)
    if slopes is not None:
      raise ValueError("attention: implementation='splash' has no slopes")
    return fused_attention.splash(q, k, v, **packed)

  rule = Rule(causal, window, slopes)
  if sequence.parts(time) > 1:
    return sequence.on_parts(lambda tokens, _: (_of_part(rule, *tokens).astype(v.dtype), ()), (q, k, v, places), ())[0]
  if _one_by_one(q, k):
    of_one = lambda x: _row(rule, *jax.tree.map(lambda leaf: leaf[None], x))[0]
    return jax.lax.map(of_one, (q, k, v, places)).astype(v.dtype)
  return _row(rule, q, k, v, places).astype(v.dtype)


def _one_by_one(q: jax.Array, k: jax.Array) -> bool:
  """Whether one sequence is taken after another: where a CPU is the only device and there are many scores, those of one stay in its caches.

  Attention alone, forward + backward, takes 0.65 to 0.8 of the time: 4 x 256 tokens, 12 heads of 64, and causal 4 x 512, 4 heads.  A whole training
  step 0.97 at width 768 (BERT 879 -> 852 ms, GPT-2 887 -> 865, 3 layers, 4 x 256) and the same at width 256 (float32, 2 cores, November 2026).
  """
  scores = q[..., 0].size * k.shape[1]
  return meshes.platform() == 'cpu' and jax.sharding.get_abstract_mesh().size <= 1 and len(q) > 1 and scores > _MANY


def _row(rule: 'Rule', q, k, v, places: 'Places') -> jax.Array:
  """`attend` of whole rows."""
  heads_first = _heads_first(q, k, v)
  if rule.window is not None and rule.window < q.shape[1]:
    return _heads_last(_sliding(*heads_first, places, rule, max(rule.window, _BLOCK)))
  if rule.causal:
    return _heads_last(_by_pieces(*heads_first, places, rule))
  return _heads_last(_by_blocks(*heads_first, places, places, rule))


def _of_part(rule: 'Rule', q, k, v, places: 'Places') -> jax.Array:
  """Where the mesh splits time: the queries of a part see the keys of all parts, or with a window those that it reaches."""
  time = q.shape[1]
  if rule.window is None:
    return _heads_last(_by_blocks(*_heads_first(q, sequence.whole(k), sequence.whole(v)), places, tuple(map(sequence.whole, places)), rule))
  index, run = places
  reach, places = rule.window - 1, (index, run + 1)          # run 0: where there is no part
  around = lambda x, after: sequence.halo(x, reach, after)
  beside = lambda x: jnp.concatenate([around(x, False), x] + ([] if rule.causal else [around(x, True)]), axis=1)
  k, v, columns = beside(k), beside(v), tuple(map(beside, places))
  if time <= reach:
    return _heads_last(_by_blocks(*_heads_first(q, k, v), places, columns, rule))
  q = jnp.pad(q, ((0, 0), (reach, 0 if rule.causal else reach), (0, 0), (0, 0)))
  return _row(rule, q, k, v, columns)[:, reach:reach + time]


# Forward + backward against jax.nn.dot_product_attention over the whole, 4 heads of 64, float32, 2 cores CPU, busy, November 2026: 0.6 of the
# time at batch 4 x 512, 0.35 at 1 x 4096, 0.1 there with a window of 256; blocks of 64 to 256 and 8 or 16 pieces are within the noise.
# _MANY: scores of all sequences, above which these are taken one by one.
_BLOCK, _PIECES, _MANY = 256, 8, 2**18
Places = tuple[jax.Array, jax.Array]              # of tokens: index in the row and number of the document, both int32 [batch, time]


@dataclasses.dataclass(frozen=True)
class Rule:
  """Who sees whom, and how much less for being apart; see `attend`."""
  causal: bool
  window: int | None
  slopes: Slopes

  def scores(self, products: jax.Array, rows: Places, columns: Places, keys_first: bool = False) -> jax.Array:
    """Products of queries and keys, [batch, kv_heads, group, rows, columns] or, keys first, [batch, kv_heads, columns, group, rows], with slopes
    and mask; a row that allows nothing sees everything."""
    of_rows, of_columns, of_heads = ((1, 2, 3), (1, 3, 4), (1, 3)) if keys_first else ((1, 2, 4), (1, 2, 3), (2, 3))
    at, to = ([jnp.expand_dims(x, axes) for x in places] for places, axes in ((rows, of_rows), (columns, of_columns)))
    distance, mask = at[0] - to[0], at[1] == to[1]
    if self.causal:
      mask &= distance >= 0
    if self.window is not None:
      mask &= jnp.abs(distance) < self.window
    if self.slopes is not None:
      steep = jnp.asarray(self.slopes, products.dtype).reshape(products.shape[1], -1)
      products -= jnp.expand_dims(steep, of_heads) * jnp.abs(distance).astype(products.dtype)
    return jnp.where(mask, products, jnp.finfo(products.dtype).min / 2)


def _heads_first(q, k, v) -> tuple[jax.Array, jax.Array, jax.Array]:
  """q [batch, kv_heads, group, time, head_dim], scaled; k and v [batch, kv_heads, keys, head_dim]."""
  q = (q * q.shape[-1] ** -0.5).reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
  return jnp.moveaxis(q, 1, -2), jnp.moveaxis(k, 1, -2), jnp.moveaxis(v, 1, -2)


def _heads_last(y: jax.Array) -> jax.Array:
  """[batch, kv_heads, group, time, head_dim] -> [batch, time, heads, head_dim]."""
  y = jnp.moveaxis(y, -2, 1)
  return y.reshape(*y.shape[:2], -1, y.shape[-1])


def _block(rule: Rule, q, rows: Places, k, v, columns: Places) -> tuple[jax.Array, jax.Array]:
  """(y, logarithm of the sum of a row's exponentials) of one block of queries.  v: with a column of ones.

  The exponentials are divided by their sum, the product with v's ones, after the product with v: no sum over keys is needed (on a CPU the
  slowest part of softmax's).
  """
  wide = jnp.promote_types(q.dtype, jnp.float32)
  scores = rule.scores(jnp.einsum('bhgtd,bhsd->bhgts', q, k, preferred_element_type=wide), rows, columns)
  largest = jnp.max(scores, axis=-1, keepdims=True)
  sums = jnp.einsum('bhgts,bhsd->bhgtd', jnp.exp(scores - largest).astype(v.dtype), v, preferred_element_type=wide)
  total = jnp.maximum(sums[..., -1:], 0.5)                                         # at least 1, but for rows that only fill up a piece
  return sums[..., :-1] / total, (largest + jnp.log(total))[..., 0]


def _block_gradient(rule: Rule, q, rows: Places, g, total, along, k, v, columns: Places) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gradients by q, k, v of one block, the last two of what its queries add to them.

  g: of y.  total: the logarithms of `_block`.  along: sum over head_dim of g * y, so that no sum over keys is needed.
  All arrays of rows and keys stand keys first, which spares two of the three transpositions.
  """
  wide, (group, time) = total.dtype, q.shape[2:4]
  fold = lambda x: x.reshape(*x.shape[:2], group * time, *x.shape[4:])             # the heads of a group are more queries to the same keys
  q, g, total, along = fold(q), fold(g).astype(v.dtype), fold(total)[:, :, None], fold(along)[:, :, None]
  products = jnp.einsum('bhsd,bhtd->bhst', k, q, preferred_element_type=wide)
  scores = rule.scores(products.reshape(*products.shape[:3], group, time), rows, columns, keys_first=True).reshape(products.shape)
  weights = jnp.exp(scores - total)
  by_v = jnp.einsum('bhst,bhtd->bhsd', weights.astype(v.dtype), g, preferred_element_type=wide)
  by_scores = (weights * (jnp.einsum('bhsd,bhtd->bhst', v, g, preferred_element_type=wide) - along)).astype(k.dtype)
  by_k = jnp.einsum('bhst,bhtd->bhsd', by_scores, q, preferred_element_type=wide)
  by_q = jnp.einsum('bhst,bhsd->bhtd', by_scores, k, preferred_element_type=wide)
  return by_q.reshape(*by_q.shape[:2], group, time, -1), by_k, by_v


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _by_blocks(q, k, v, rows: Places, columns: Places, rule: Rule) -> jax.Array:
  """Attention of the queries at `rows` to the keys at `columns`, block by block.  Arrays as `_heads_first` makes them."""
  return _forward(q, k, v, rows, columns, rule)[0]


def _forward(q, k, v, rows, columns, rule):
  time, with_ones = q.shape[-2], jnp.concatenate([v, jnp.ones((*v.shape[:-1], 1), v.dtype)], axis=-1)
  if time <= _BLOCK:
    y, total = _block(rule, q, rows, k, with_ones, columns)
  else:
    y, total = jax.lax.map(lambda xs: _block(rule, *xs, k, with_ones, columns), (_cut(q, _BLOCK, -2), _cut(rows, _BLOCK, 1)))
    y, total = _join(y, time), _join(total[..., None], time)[..., 0]
  return y, (q, k, v, rows, columns, y, total)


def _backward(rule, kept, g):
  q, k, v, rows, columns, y, total = kept
  along, time = jnp.sum(g * y, axis=-1), q.shape[-2]
  if time <= _BLOCK:
    by_q, by_k, by_v = _block_gradient(rule, q, rows, g, total, along, k, v, columns)
  else:
    def step(sums, xs):
      by_q, *more = _block_gradient(rule, *xs[:3], xs[3][..., 0], xs[4][..., 0], k, v, columns)
      return tuple(a + b for a, b in zip(sums, more)), by_q
    cut = lambda x: _cut(x, _BLOCK, -2)
    zeros = tuple(jnp.zeros(x.shape, total.dtype) for x in (k, v))
    (by_k, by_v), by_q = jax.lax.scan(step, zeros, (cut(q), _cut(rows, _BLOCK, 1), cut(g), cut(total[..., None]), cut(along[..., None])))
    by_q = _join(by_q, time)
  return by_q.astype(q.dtype), by_k.astype(k.dtype), by_v.astype(v.dtype), None, None


_by_blocks.defvjp(_forward, _backward)


def _by_pieces(q, k, v, places: Places, rule: Rule) -> jax.Array:
  """Causal attention in a few pieces, each with the keys up to its own end."""
  time = q.shape[-2]
  step = -(-time // (_BLOCK * _PIECES)) * _BLOCK

  def piece(start):
    stop = start + step
    until = tuple(x[:, :stop] for x in places)
    return _by_blocks(q[..., start:stop, :], k[..., :stop, :], v[..., :stop, :], tuple(x[:, start:] for x in until), until, rule)
  return jnp.concatenate([piece(start) for start in range(0, time, step)], axis=-2)


def _sliding(q, k, v, places: Places, rule: Rule, size: int) -> jax.Array:
  """Attention within a window of at most `size` tokens: pieces of that many queries see their own keys and those of the pieces beside."""
  time = q.shape[-2]
  q, k, v = (_cut(x, size, -2) for x in (q, k, v))                                # [piece, batch, ...]
  index, run = (_cut(x, size, 1) for x in (places[0], places[1] + 1))             # what is filled up has run 0, which nobody has

  def beside(x, axis):
    empty = jnp.zeros_like(x[:1])
    around = (jnp.concatenate([empty, x[:-1]]), x) + (() if rule.causal else (jnp.concatenate([x[1:], empty]),))
    return jnp.concatenate(around, axis=axis)
  columns = beside(index, 2), beside(run, 2)
  y = jax.lax.map(lambda xs: _by_blocks(*xs, rule), (q, beside(k, -2), beside(v, -2), (index, run), columns))
  return _join(y, time)


def _cut(x, size: int, axis: int):
  """An array, or a tuple of them, with `axis` of tokens cut into pieces of `size`, zeros after the end; the pieces come first."""
  if isinstance(x, tuple):
    return tuple(_cut(y, size, axis) for y in x)
  axis %= x.ndim
  pieces = -(-x.shape[axis] // size)
  x = jnp.pad(x, [(0, pieces * size - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])
  return jnp.moveaxis(x.reshape(*x.shape[:axis], pieces, size, *x.shape[axis + 1:]), axis, 0)


def _join(y: jax.Array, time: int) -> jax.Array:
  """[pieces, ..., size, head_dim] -> [..., time, head_dim]."""
  y = jnp.moveaxis(y, 0, -3)
  return y.reshape(*y.shape[:-3], -1, y.shape[-1])[..., :time, :]


def init_cache(batch: int, slots: int, kv_heads: int, head_dim: int, dtype) -> dict[str, jax.Array]:
  """An empty cache: all zeros.  `held` is 1 + the position that a slot's key has in its document, 0 for an empty slot."""
  return dict(k=jnp.zeros((batch, slots, kv_heads, head_dim), dtype), v=jnp.zeros((batch, slots, kv_heads, head_dim), dtype),
              held=jnp.zeros((batch, slots), jnp.int32), written=jnp.zeros((batch,), jnp.int32))


def attend_cached(q: jax.Array, k: jax.Array, v: jax.Array, cache: dict[str, Any], positions: jax.Array, *,
                  window: int | None = None, slopes: Slopes = None,
                  segment_ids: jax.Array | None = None) -> tuple[jax.Array, dict[str, Any]]:
  """Causal attention of new tokens over the cache and themselves.

  q, k, v: as for `attend`, `time` >= 1 new tokens.  positions: int32 [batch, time], of the new tokens in their documents.
  cache: from init_cache; with a window, `slots` >= window is a ring, without one it must hold every token that will come
    (beyond that the oldest keys are overwritten: callers check lengths beforehand, the count is not known while tracing).
  Returns (y [batch, time, heads, head_dim], cache after the new tokens).
  """
  _check_heads(q, k)
  batch, time = q.shape[:2]
  slots = cache['k'].shape[1]
  if segment_ids is None:
    is_real, document = jnp.ones((batch, time), bool), jnp.zeros((batch, time), jnp.int32)
  else:
    is_real, document = segments.real(segment_ids), segments.documents(segment_ids)
  order = jnp.cumsum(is_real, axis=1) - 1
  total = order[:, -1:] + 1
  survives = is_real & (order >= total - slots)                              # of more than `slots` new tokens the last ones stay
  slot = jnp.where(survives, (cache['written'][:, None] + order) % slots, slots)            # `slots` is out of range: dropped
  rows = jnp.arange(batch)[:, None]
  write = lambda old, new: old.at[rows, slot].set(new.astype(old.dtype), mode='drop')
  after = dict(k=write(cache['k'], k), v=write(cache['v'], v), held=write(cache['held'], positions + 1))
  owner = write(jnp.zeros((batch, slots), jnp.int32), document)
  if time == 1 or window is None and time <= slots:          # nothing that a query still needs has been overwritten
    keys, values, held, key_document = after['k'], after['v'], after['held'], owner
  else:
    join = lambda old, new: jnp.concatenate([old, new.astype(old.dtype)], axis=1)
    keys, values = join(cache['k'], k), join(cache['v'], v)
    held = join(cache['held'], jnp.where(is_real, positions + 1, 0))
    key_document = join(jnp.zeros((batch, slots), jnp.int32), document)
  key_document = jnp.where(held > 0, key_document, -1)                          # an empty slot is of no document
  heads_first = _heads_first(q, keys.astype(q.dtype), values.astype(q.dtype))
  y = _heads_last(_by_blocks(*heads_first, (positions, document), (held - 1, key_document), Rule(True, window, slopes)))
  current = jnp.max(document, axis=1, keepdims=True)
  after['held'] = jnp.where(owner == current, after['held'], 0)              # what an ended document wrote is empty again
  after['written'] = cache['written'] + total[:, 0]
  return y.astype(v.dtype), after


def _check_heads(q: jax.Array, k: jax.Array) -> None:
  if q.shape[2] % k.shape[2]:
    raise ValueError(f'attention: {q.shape[2]} query heads are not a multiple of {k.shape[2]} key/value heads')
