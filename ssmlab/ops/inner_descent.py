"""A linear model that is trained in mini-batches while it reads: the inner loop of TTT-Linear."""

import jax
import jax.numpy as jnp

from ssmlab.core.mesh import constrain
from ssmlab.ops import segments

Arrays = dict[str, jax.Array]


def inner_descent(
    q: jax.Array,
    k: jax.Array,
    target: jax.Array,
    rate: jax.Array,
    place_rate: jax.Array,
    positions: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
    eps: float,
    initial: Arrays | None = None,
    segment_ids: jax.Array | None = None,
) -> tuple[jax.Array, Arrays]:
  """z[t] = q[t] W[t] + b[t], with W[t] = W' - place_rate[p] sum_j rate[j] k[j]^T g[j] and b[t] = b' - place_rate[p] sum_j rate[j] g[j].

  p is the token's place in its mini-batch of len(place_rate) tokens, j runs over the mini-batch up to and with t, W' and b' are what the
  mini-batch began with, and g[j] is the gradient of |scale * norm(k[j] W' + b') + shift - target[j]|^2 / 2 by k[j] W' + b'.  The next
  mini-batch begins with the W and b after the last token of this one.  Mini-batches are counted from the beginning of a document.

  q, k: [batch, time, heads, key].  target: [batch, time, heads, value].  rate: [batch, time, heads].  place_rate: [mini-batch].
  positions: int32 [batch, time], of the tokens in their documents, as `segments.positions` gives them.
  weight: [heads, key, value], bias: [heads, value]: W' and b' at the beginning of a document.  scale, shift: [heads, value].
  initial: what an earlier call returned, or None for nothing read; zeros are the same as None.
  segment_ids: int32 [batch, time], see `ops.segments`; padding neither reads nor writes.

  Returns z [batch, time, heads, value] and the state: weight, bias (W' and b' less what a document begins with), weight_sum, bias_sum (the
  sums over the mini-batch that is being read).  Arithmetic and state are float32, or float64 where an input is.
  One document per row is read a mini-batch at a time in the dual form, matrix products over its tokens; packed documents, whose
  mini-batches begin anywhere, and calls shorter than a mini-batch, a token at a time by the same lines.  The backward pass stores the
  state once per mini-batch of tokens and computes the rest again.
  Source: Learning to (Learn at Test Time), arXiv 2407.04620, section 2.5 and appendix A (dual form).
  """
  batch, time, heads, key = q.shape
  size, dtype = len(place_rate), jnp.result_type(jnp.float32, q, k, target, rate, weight)
  begin = dict(weight=weight, bias=bias, weight_sum=jnp.zeros_like(weight), bias_sum=jnp.zeros_like(bias))
  begin = {name: jnp.broadcast_to(x, (batch, *x.shape)).astype(dtype) for name, x in begin.items()}
  state = begin if initial is None else {name: x + initial[name] for name, x in begin.items()}
  place = positions % size
  tokens = dict(q=q, k=k, target=target, rate=rate, factor=place_rate[place])
  if segment_ids is not None:
    tokens['rate'] = jnp.where(segments.real(segment_ids)[..., None], rate, 0)
  # A mini-batch begins with what the one before it has learned: every device takes whole rows of some heads.
  tokens = {name: constrain(x.astype(dtype), *('batch', None, 'row_heads', None)[:x.ndim]) for name, x in tokens.items()}
  last_factor = place_rate[-1].astype(dtype)
  scale, shift = scale.astype(dtype), shift.astype(dtype)

  def step(state, inputs):
    tokens, starts, ends = inputs
    state = jax.tree.map(lambda x, fresh: jnp.where(_over(starts, x), fresh, x), state, begin)
    return _read(state, tokens, scale, shift, eps, jnp.where(ends, last_factor, 0), ends)

  if segment_ids is None and time >= size:
    offset = jnp.zeros((batch,), jnp.int32) if initial is None else place[:, 0]
    z, state = _by_mini_batch(step, state, tokens, offset, size, 0 if initial is None else size - 1)
  else:
    ends = place == size - 1
    if segment_ids is not None:
      ends &= segments.real(segment_ids)
    starts = jnp.zeros_like(ends) if segment_ids is None else segments.starts(segment_ids)
    z, state = _by_token(step, state, tokens, starts, ends, min(size, time))
  return constrain(z, 'batch', None, 'row_heads', None), {name: x - begin[name] for name, x in state.items()}


def _read(state: Arrays, tokens: Arrays, scale, shift, eps, last_factor, ends) -> tuple[Arrays, jax.Array]:
  """Tokens of one mini-batch, from any place on: (state, [batch, m, ...]) -> (state, z).  ends: whether its last token is among them."""
  q, k, factor = tokens['q'], tokens['k'], tokens['factor']
  product = lambda spec, *arrays: jnp.einsum(spec, *arrays, precision='highest')
  read = lambda x, weight, bias: product('bthk,bhkv->bthv', x, weight) + bias[:, None]
  g = tokens['rate'][..., None] * loss_gradient(read(k, state['weight'], state['bias']), tokens['target'], scale, shift, eps)
  scores = jnp.tril(product('bthk,bshk->bhts', q, k) + 1)                       # the 1 is the bias's
  done = read(q, state['weight_sum'], state['bias_sum']) + product('bhts,bshv->bthv', scores, g)
  z = read(q, state['weight'], state['bias']) - factor[..., None, None] * done
  sums = dict(weight=state['weight_sum'] + product('bthk,bthv->bhkv', k, g), bias=state['bias_sum'] + jnp.sum(g, axis=1))
  after = {name: state[name] - _over(last_factor, x) * x for name, x in sums.items()}
  return after | {f'{name}_sum': jnp.where(_over(ends, x), 0, x) for name, x in sums.items()}, z


def loss_gradient(z: jax.Array, target: jax.Array, scale: jax.Array, shift: jax.Array, eps: float) -> jax.Array:
  """d/dz of |scale * norm(z) + shift - target|^2 / 2, norm over the last axis with biased variance."""
  centred = z - jnp.mean(z, axis=-1, keepdims=True)
  inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
  normed = centred * inverse
  g = (scale * normed + shift - target) * scale
  return (g - jnp.mean(g, axis=-1, keepdims=True) - normed * jnp.mean(g * normed, axis=-1, keepdims=True)) * inverse


def _over(rows: jax.Array, x: jax.Array) -> jax.Array:
  """One value per row, shaped to broadcast against x [batch, ...]."""
  return rows.reshape(-1, *(1,) * (x.ndim - 1))


def _by_mini_batch(step, state, tokens: Arrays, offset: jax.Array, size: int, most: int):
  """Each row's tokens stand `offset` (at most `most`) slots from the left, so that mini-batches are blocks of `size` slots in all rows."""
  batch, time = tokens['rate'].shape[:2]
  blocks = -(-(time + most) // size)
  source = jnp.arange(blocks * size) - offset[:, None]                          # which token stands in a slot
  filled = (source >= 0) & (source < time)

  def place(x):
    if most:
      index = jnp.clip(source, 0, time - 1).reshape(*source.shape, *(1,) * (x.ndim - 2))
      x = jnp.where(filled.reshape(index.shape), jnp.take_along_axis(x, index, axis=1), 0)
    else:
      x = jnp.pad(x, ((0, 0), (0, blocks * size - time)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(batch, blocks, size, *x.shape[2:]), 1, 0)
  ends = jnp.arange(1, blocks + 1)[:, None] * size <= offset + time
  inputs = jax.tree.map(place, tokens), jnp.zeros_like(ends), ends
  state, z = jax.lax.scan(jax.checkpoint(step), state, inputs)
  z = jnp.moveaxis(z, 0, 1).reshape(batch, blocks * size, *z.shape[3:])
  if not most:
    return z[:, :time], state
  return jnp.take_along_axis(z, (offset[:, None] + jnp.arange(time))[..., None, None], axis=1), state


def _by_token(step, state, tokens: Arrays, starts: jax.Array, ends: jax.Array, group: int):
  """One token after another; groups of them are stored as their beginning only."""
  batch, time = starts.shape
  if time == 1:                                         # decoding: one update, no loop
    state, z = step(state, (tokens, starts[:, 0], ends[:, 0]))
    return z, state
  groups = -(-time // group)

  def cut(x):                                           # zeros after the end: no rate, so nothing is written
    x = jnp.pad(x, ((0, 0), (0, groups * group - time)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(batch, groups, group, *x.shape[2:]), 0, 2)
  inputs = jax.tree.map(lambda x: jnp.expand_dims(cut(x), 3), tokens), cut(starts), cut(ends)
  state, z = jax.lax.scan(jax.checkpoint(lambda state, few: jax.lax.scan(step, state, few)), state, inputs)
  z = jnp.moveaxis(z[:, :, :, 0], 2, 0)
  return z.reshape(batch, groups * group, *z.shape[3:])[:, :time], state
