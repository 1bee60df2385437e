"""Halvings of a chunk, and the unit lower triangular system of the rank-one term, solved with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def exact(x: jax.Array, y: jax.Array) -> jax.Array:
  """Matrix product in full float32 on every platform, for sums in the exponent and for the inverse, which amplifies errors."""
  return jnp.matmul(x, y, precision='highest')


@functools.cache
def halvings(chunk: int) -> tuple[np.ndarray, np.ndarray]:
  """A chunk in pairs of neighbouring halves of 1, 2, 4, .. tokens: (pairs, between), [levels, chunk, chunk].

  pairs: bool, true at (i, j) where i is in a right half and j in the left half beside it; every j < i occurs in one level.
  between: 0/1, 1 at (i, s) where s lies strictly between token i and the boundary of its two halves.
  """
  i, s = np.arange(chunk)[:, None], np.arange(chunk)[None, :]
  pairs, between = [], []
  half = 1
  while half < chunk:
    boundary = i // (2 * half) * 2 * half + half
    right = i >= boundary
    pairs.append(right & (s < boundary) & (s >= boundary - half))
    between.append(np.where(right, (s >= boundary) & (s < i), (s > i) & (s < boundary)))
    half *= 2
  return np.array(pairs), np.array(between)


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
  for level, pairs in enumerate(halvings(lower.shape[-1])[0]):
    corner = jnp.where(pairs, lower, 0)
    inv = inv + (corner if level == 0 else exact(inv, exact(corner, inv)))
  return jnp.broadcast_to(inv, lower.shape)
