"""What happens inside chunks of tokens, apart from the state: decays, scores, and the triangular system of the rank-one term.

Every decay factor that appears is exp of a sum of log decays of consecutive tokens, each sum formed by additions alone.  A chunk is split
in two halves again and again: a pair (reader i in the right half, writer j in the left half) is referred to the boundary between the
halves, exp(g_{j+1} + .. + g_{i-1}) = exp(sum up to the boundary) * exp(sum from the boundary).  Both factors are <= 1, so no decay,
however strong, overflows, no difference of large sums is taken, and the gradient of a log decay is the sum of the pairs that straddle it.
"""

from typing import Callable

import jax
import jax.numpy as jnp


def halves(log_decay: jax.Array, cross: Callable[[jax.Array, jax.Array, int], jax.Array], scores: jax.Array):
  """Strictly lower triangular scores of a chunk, built up from blocks of one token.

  log_decay: [..., chunk, key or 1].
  cross(since, until, size): scores of all right halves against their left halves, [..., pairs, reads, size, writes, size], given the sums
    of log decays since the boundary (exclusive of the reader) and until it (exclusive of the writer), [..., pairs, size, key or 1].
  scores: [..., chunk, reads, 1, writes, 1], the scores of a token with itself.
  Returns scores [..., reads, chunk, writes, chunk], and over the chunk: the sum before each token, the sum after it, the sum of all.
  """
  total = log_decay[..., None, :]
  since = until = jnp.zeros_like(total)
  size = 1
  while size < log_decay.shape[-2]:
    left, right = (lambda x: _every_other(x, 0, 3)), (lambda x: _every_other(x, 1, 3))
    corner = cross(right(since), left(until), size)
    top = jnp.concatenate([_every_other(scores, 0, 5), jnp.zeros_like(corner)], axis=-1)
    scores = jnp.concatenate([top, jnp.concatenate([corner, _every_other(scores, 1, 5)], axis=-1)], axis=-3)
    since = jnp.concatenate([left(since), right(since) + left(total)], axis=-2)
    until = jnp.concatenate([left(until) + right(total), right(until)], axis=-2)
    total = left(total) + right(total)
    size *= 2
  return scores.squeeze(-5), since.squeeze(-3), until.squeeze(-3), total.squeeze(-3)


def _every_other(x: jax.Array, first: int, axis_from_end: int) -> jax.Array:
  axis = x.ndim - axis_from_end
  return jax.lax.slice_in_dim(x, first, None, 2, axis)


@jax.custom_vjp
def solve_unit_lower(lower: jax.Array, right: jax.Array) -> jax.Array:
  """(I - lower)^{-1} right, with lower [..., chunk, chunk] strictly lower triangular and right [..., chunk, value]."""
  return _product(inverse(lower), right)


def _solve_forward(lower, right):
  inv = inverse(lower)
  solution = _product(inv, right)
  return solution, (inv, solution)


def _solve_backward(residuals, d_solution):
  inv, solution = residuals
  d_right = _product(jnp.swapaxes(inv, -1, -2), d_solution)
  return jnp.tril(_product(d_right, jnp.swapaxes(solution, -1, -2)), -1), d_right


solve_unit_lower.defvjp(_solve_forward, _solve_backward)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
  """Full float32 on every platform: the inverse amplifies errors of its factors."""
  return jnp.matmul(x, y, precision='highest')


def inverse(lower: jax.Array) -> jax.Array:
  """(I - lower)^{-1} by block doubling, without powers of `lower`, which may overflow where the inverse does not."""
  size, chunk = 1, lower.shape[-1]
  blocks = jnp.ones(lower.shape[:-2] + (chunk, 1, 1), lower.dtype)
  while size < chunk:
    pairs = chunk // (2 * size)
    tiles = lower.reshape(lower.shape[:-2] + (pairs, 2, size, pairs, 2, size))
    diagonal = jnp.moveaxis(jnp.diagonal(tiles[..., 1, :, :, 0, :], axis1=-4, axis2=-2), -1, -3)
    upper_left, lower_right = _every_other(blocks, 0, 3), _every_other(blocks, 1, 3)
    corner = _product(_product(lower_right, diagonal), upper_left)
    top = jnp.concatenate([upper_left, jnp.zeros_like(corner)], axis=-1)
    blocks = jnp.concatenate([top, jnp.concatenate([corner, lower_right], axis=-1)], axis=-2)
    size *= 2
  return blocks.squeeze(-3)
