"""Decays inside a chunk of tokens, and the scores between its tokens.

Every decay factor is exp of a sum of log decays of consecutive tokens, and each sum is formed by additions alone: no decay, however
strong, overflows, no difference of large sums is taken, and the gradient of a log decay is the sum over just the pairs that straddle it.
For vector decays the chunk is halved again and again: a reader i in a right half and a writer j in the left half beside it are referred to
the boundary between them, exp(g_{j+1} + .. + g_{i-1}) = exp(sum before the boundary) * exp(sum after it), both factors <= 1.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.ops.linear_recurrence.triangular import exact, halvings

_MILD = 50.0   # summed log decay of half a chunk up to which exp(+-sum), times small gradients, stays inside float32


def sums(log_decay: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Sum of log decays before each token, after it, and over the chunk.

  log_decay: [..., chunk, key or 1].  Returns [..., chunk, key or 1] twice and [..., 1, key or 1].
  """
  chunk = log_decay.shape[-2]
  before = np.tri(chunk, k=-1)
  every = _weigh(np.concatenate([before, before.T, np.ones((1, chunk))]), log_decay)
  return every[..., :chunk, :], every[..., chunk:-1, :], every[..., -1:, :]


def _weigh(weights: np.ndarray, log_decay: jax.Array) -> jax.Array:
  # One copy per chunk: as a shared left factor XLA would transpose the result.
  return exact(jnp.broadcast_to(jnp.asarray(weights, log_decay.dtype), log_decay.shape[:-2] + weights.shape), log_decay)


def scale(x: jax.Array, factor: jax.Array) -> jax.Array:
  """Multiplies every kind of x [..., kinds * chunk, key] by factor [..., chunk, key or 1]."""
  kinds = x.reshape(x.shape[:-2] + (-1, factor.shape[-2], x.shape[-1]))
  return (kinds * factor[..., None, :, :]).reshape(x.shape)


def scores(precision, reads: jax.Array, writes: jax.Array, log_decay: jax.Array) -> jax.Array:
  """sum_k reads_ik writes_jk exp(g_{j+1,k} + .. + g_{i-1,k}) for tokens j < i, else 0.  [..., n * chunk, m * chunk].

  reads: [..., n * chunk, key], n kinds of reads, one after the other.  writes: [..., m * chunk, key].
  log_decay: [..., chunk, key], or [..., chunk, 1] for one decay per head.
  """
  if log_decay.shape[-1] > 1:
    return _vector_scores(precision, reads, writes, log_decay)
  kinds = reads.shape[-2] // log_decay.shape[-2], writes.shape[-2] // log_decay.shape[-2]
  return _product(precision, reads, writes) * jnp.tile(between(log_decay, before=True), kinds)


def _product(precision, reads: jax.Array, writes: jax.Array) -> jax.Array:
  return jnp.matmul(reads, jnp.swapaxes(writes, -1, -2), precision=precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _vector_scores(precision, reads, writes, log_decay):
  """Scores under a vector decay: one product where the chunk's decay is mild, otherwise one product per halving.

  The choice is made while running; its gradient is written out so that the branches need not keep intermediates for it.
  """
  forms = (functools.partial(form, precision) for form in (_mild_scores, _any_scores))
  return jax.lax.cond(_is_mild(log_decay), *forms, reads, writes, log_decay)


def _vector_scores_forward(precision, reads, writes, log_decay):
  return _vector_scores(precision, reads, writes, log_decay), (reads, writes, log_decay)


def _vector_scores_backward(precision, arrays, d_scores):
  def pull(form):
    return lambda arrays, d_scores: jax.vjp(functools.partial(form, precision), *arrays)[1](d_scores)
  return jax.lax.cond(_is_mild(arrays[2]), pull(_mild_scores), pull(_any_scores), arrays, d_scores)


_vector_scores.defvjp(_vector_scores_forward, _vector_scores_backward)


def _is_mild(log_decay: jax.Array) -> jax.Array:
  halves = log_decay.reshape(log_decay.shape[:-2] + (2, -1) + log_decay.shape[-1:])
  return jnp.min(jnp.sum(halves, axis=-2)) > -_MILD


def _mild_scores(precision, reads: jax.Array, writes: jax.Array, log_decay: jax.Array) -> jax.Array:
  """Every token referred to the chunk's middle.  Exponents reach +-_MILD; what overflows belongs to pairs j >= i and is masked."""
  chunk = log_decay.shape[-2]
  until = np.tri(chunk)
  middle = until[chunk // 2 - 1:chunk // 2]
  factors = jnp.exp(_weigh(np.concatenate([until - np.eye(chunk) - middle, middle - until]), log_decay))
  every = _product(precision, scale(reads, factors[..., :chunk, :]), scale(writes, factors[..., chunk:, :]))
  return _keep(np.tri(chunk, k=-1, dtype=bool), every)


def _any_scores(precision, reads: jax.Array, writes: jax.Array, log_decay: jax.Array) -> jax.Array:
  """The sum over all halvings; halves of one token need no decay, for reader and writer are neighbours."""
  pairs, between = halvings(log_decay.shape[-2])
  result = _keep(pairs[0], _product(precision, reads, writes))
  for mask, weights in zip(pairs[1:], between[1:]):
    factor = jnp.exp(_weigh(weights, log_decay))
    result = result + _keep(mask, _product(precision, scale(reads, factor), scale(writes, factor)))
  return result


def _keep(mask: np.ndarray, x: jax.Array) -> jax.Array:
  return jnp.where(np.tile(mask, (x.shape[-2] // mask.shape[0], x.shape[-1] // mask.shape[1])), x, 0)


def between(log_decay: jax.Array, before: bool) -> jax.Array:
  """exp(g_{j+1} + .. + g_i) for j <= i, else 0; with `before`, exp(g_{j+1} + .. + g_{i-1}) for j < i.  [..., chunk, chunk].

  log_decay: [..., chunk, 1].  The exponent is masked, not the result: exp could overflow.
  """
  chunk = log_decay.shape[-2]
  until, after = np.tri(chunk, k=-1 if before else 0), np.tri(chunk, k=-1)
  sums = exact(jnp.swapaxes(log_decay, -1, -2) * jnp.asarray(until, log_decay.dtype), jnp.asarray(after, log_decay.dtype))
  return jnp.exp(jnp.where(until == 1, sums, -jnp.inf))
