"""What happens inside a chunk of tokens, apart from the state: decays, scores, and the triangular system of the rank-one term.

Every decay factor is exp of a sum of log decays of consecutive tokens, and each sum is formed by additions alone: no decay, however
strong, overflows, no difference of large sums is taken, and the gradient of a log decay is the sum over just the pairs that straddle it.
For vector decays the chunk is halved again and again: a reader i in a right half and a writer j in the left half beside it are referred to
the boundary between them, exp(g_{j+1} + .. + g_{i-1}) = exp(sum before the boundary) * exp(sum after it), both factors <= 1.
"""

import functools
from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np

Product = Callable[[jax.Array, jax.Array], jax.Array]


def exact(x: jax.Array, y: jax.Array) -> jax.Array:
  """Matrix product in full float32 on every platform, for sums in the exponent and for the inverse, which amplifies errors."""
  return jnp.matmul(x, y, precision='highest')


@functools.cache
def _halvings(chunk: int) -> tuple[np.ndarray, np.ndarray]:
  """(pairs, between): for half sizes 1, 2, .., chunk/2 the pairs (reader, writer) of neighbouring halves, bool [levels, chunk, chunk], and
  the tokens strictly between a token and the boundary of its halves on its own side, 0/1 [levels, chunk, chunk]."""
  i, s = np.arange(chunk)[:, None], np.arange(chunk)[None, :]
  pairs, between = [], []
  half = 1
  while half < chunk:
    boundary = i // (2 * half) * 2 * half + half
    right = i >= boundary
    pairs.append(right & (s < boundary) & (s >= boundary - half))
    between.append(np.where(right, (s >= boundary) & (s < i), (s > i) & (s < boundary)))
    half *= 2
  return np.array(pairs).reshape(-1, chunk, chunk), np.array(between).reshape(-1, chunk, chunk)


def decays(log_decay: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Decay from the chunk's start to before each token, from after it to the end, and over the chunk.

  log_decay: [..., chunk, key or 1].  Returns [..., chunk, key or 1] twice and [..., 1, key or 1].
  """
  chunk = log_decay.shape[-2]
  before = np.tri(chunk, k=-1)
  sums = exact(jnp.asarray(np.concatenate([before, before.T, np.ones((1, chunk))]), log_decay.dtype), log_decay)
  return jnp.exp(sums[..., :chunk, :]), jnp.exp(sums[..., chunk:-1, :]), jnp.exp(sums[..., -1:, :])


def scores(product: Product, reads: jax.Array, writes: jax.Array, log_decay: jax.Array | None) -> jax.Array:
  """sum_k reads_ik writes_jk exp(g_{j+1,k} + .. + g_{i-1,k}) for tokens j < i, else 0.  [..., n * chunk, m * chunk].

  reads: [..., n * chunk, key], n kinds of reads, one after the other.  writes: [..., m * chunk, key].  log_decay: [..., chunk, key or 1].
  """
  if log_decay is None:
    raise ValueError
  chunk = log_decay.shape[-2]
  kinds = reads.shape[-2] // chunk, writes.shape[-2] // chunk
  if log_decay.shape[-1] == 1:
    return product(reads, jnp.swapaxes(writes, -1, -2)) * jnp.tile(_scalar_decay(log_decay), kinds)
  pairs, between = _halvings(chunk)
  result = jnp.where(np.tile(pairs[0], kinds), product(reads, jnp.swapaxes(writes, -1, -2)), 0) if chunk > 1 else jnp.zeros((), reads.dtype)
  for mask, sums in zip(pairs[1:], between[1:]):
    factor = jnp.exp(exact(jnp.asarray(sums, log_decay.dtype), log_decay))
    right, left = (_scale(x, factor) for x in (reads, writes))
    result = result + jnp.where(np.tile(mask, kinds), product(right, jnp.swapaxes(left, -1, -2)), 0)
  return jnp.broadcast_to(result, reads.shape[:-1] + writes.shape[-2:-1])


def _scale(x: jax.Array, factor: jax.Array) -> jax.Array:
  """Multiplies every kind of x [..., n * chunk, key] by factor [..., chunk, key or 1]."""
  kinds = x.reshape(x.shape[:-2] + (-1, factor.shape[-2], x.shape[-1]))
  return (kinds * factor[..., None, :, :]).reshape(x.shape)


def _scalar_decay(log_decay: jax.Array) -> jax.Array:
  """exp(g_{j+1} + .. + g_{i-1}) for j < i, else 0.  [..., chunk, chunk].  The exponent is masked, not the result: exp could overflow."""
  before = np.tri(log_decay.shape[-2], k=-1)
  constant = jnp.asarray(before, log_decay.dtype)
  sums = exact(jnp.swapaxes(log_decay, -1, -2) * constant, constant)
  return jnp.exp(jnp.where(before == 1, sums, -jnp.inf))


@jax.custom_vjp
def solve_unit_lower(lower: jax.Array, right: jax.Array) -> jax.Array:
  """(I - lower)^{-1} right, with lower [..., chunk, chunk] strictly lower triangular and right [..., chunk, value]."""
  return exact(inverse(lower), right)


def _solve_forward(lower, right):
  inv = inverse(lower)
  solution = exact(inv, right)
  return solution, (inv, solution)


def _solve_backward(residuals, d_solution):
  inv, solution = residuals
  d_right = exact(jnp.swapaxes(inv, -1, -2), d_solution)
  return jnp.tril(exact(d_right, jnp.swapaxes(solution, -1, -2)), -1), d_right


solve_unit_lower.defvjp(_solve_forward, _solve_backward)


def inverse(lower: jax.Array) -> jax.Array:
  """(I - lower)^{-1} by block doubling, without powers of `lower`, which may overflow where the inverse does not."""
  inv = jnp.eye(lower.shape[-1], dtype=lower.dtype)
  for level, pairs in enumerate(_halvings(lower.shape[-1])[0]):
    corner = jnp.where(pairs, lower, 0)
    inv = inv + (corner if level == 0 else exact(inv, exact(corner, inv)))
  return jnp.broadcast_to(inv, lower.shape)
