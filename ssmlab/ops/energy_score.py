"""The energy score between samples of a model and of its target, in memory that does not grow with their number.

Gneiting and Raftery, Strictly Proper Scoring Rules, JASA 2007, section 4.2; as a loss in CALM, arXiv 2510.27688, eq. 9-10.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def distance(difference: jax.Array, alpha: float) -> jax.Array:
  """|difference|^alpha over the last axis.  Its gradient at zero is zero: the square root's own would be infinite, and 0 times it NaN."""
  square = jnp.sum(jnp.square(difference), axis=-1)
  apart = square > 0
  safe = jnp.where(apart, square, 1.0)
  return jnp.where(apart, jnp.sqrt(safe) if alpha == 1 else safe ** (alpha / 2), 0.0)


def energy_score(x: jax.Array, target: Callable[[jax.Array], jax.Array], targets: int, alpha: float = 1.0) -> tuple[jax.Array, jax.Array]:
  """(fidelity, diversity), each [...]; fidelity - diversity is the loss, an unbiased estimate of a strictly proper score.

    fidelity  = 2 / (N M) sum over n, m of |x_n - y_m|^alpha
    diversity = 1 / (N (N - 1)) sum over n != k of |x_n - x_k|^alpha

  x: [N, ..., l], N >= 2 samples of the model.  target: m -> y_m [..., l], called once per m in a scan, and again in the backward pass.
  targets: M.  alpha: in (0, 2); at 2 the score is blind to everything but the mean.
  Everything is computed in float32 (float64 if x is); at any time one y_m and its N distances are in memory.
  """
  if not 0 < alpha < 2:
    raise ValueError(f'alpha={alpha} must be above 0 and below 2, else the score is not strictly proper')
  if x.shape[0] < 2 or targets < 1:
    raise ValueError(f'{x.shape[0]} samples and {targets} targets: at least 2 samples and 1 target are needed')
  x, samples = x.astype(jnp.promote_types(x.dtype, jnp.float32)), x.shape[0]

  @jax.checkpoint
  def to_target(x, index):
    return jnp.sum(distance(x - target(index), alpha), axis=0)

  @jax.checkpoint
  def to_each_other(x, shift):                               # every ordered pair is a sample and the one `shift` places on
    return jnp.sum(distance(x - jnp.roll(x, shift, axis=0), alpha), axis=0)

  def total(one, indices):
    return jax.lax.scan(lambda sums, index: (sums + one(x, index), None), jnp.zeros(x.shape[1:-1], x.dtype), indices)[0]
  fidelity = 2 / (samples * targets) * total(to_target, jnp.arange(targets))
  return fidelity, total(to_each_other, jnp.arange(1, samples)) / (samples * (samples - 1))
