"""A diagonal continuous system x' = lambda x + b u, sampled every dt: decay and input factor of x[t] = decay x[t-1] + factor b u[t].

Complex numbers are pairs (real, imaginary) of real arrays, as in ops.diagonal_recurrence.
"""

import jax
import jax.numpy as jnp

Pair = tuple[jax.Array, jax.Array]


def zero_order_hold(real: jax.Array, imaginary: jax.Array, dt: jax.Array) -> tuple[Pair, Pair]:
  """decay = exp(lambda dt), factor = (exp(lambda dt) - 1) / lambda: exact for an input that is constant between samples.

  real, imaginary: of lambda, not both 0.  dt: > 0, broadcasts against them.  Float32 or wider: a phase of hundreds of radians is an exponent.
  S4D, arXiv 2206.11893, section 2; S5, arXiv 2208.04933, eq. 6.
  """
  growth, phase = real * dt, imaginary * dt
  size, turn = jnp.exp(growth), jnp.sin(phase)
  above_one = jnp.expm1(growth) * jnp.cos(phase) - 2 * jnp.sin(0.5 * phase) ** 2     # Re exp(lambda dt) - 1; the difference would cancel
  below = real * real + imaginary * imaginary
  factor = ((above_one * real + size * turn * imaginary) / below, (size * turn * real - above_one * imaginary) / below)
  return (size * jnp.cos(phase), size * turn), factor


def bilinear(real: jax.Array, imaginary: jax.Array, dt: jax.Array) -> tuple[Pair, Pair]:
  """decay = (1 + lambda dt / 2) / (1 - lambda dt / 2), factor = dt / (1 - lambda dt / 2): Tustin's method.

  Arguments as for zero_order_hold; real < 0.  S5, arXiv 2208.04933, appendix A.1.
  """
  along, turn = 1 - 0.5 * real * dt, 0.5 * imaginary * dt
  size = jnp.maximum(along, jnp.abs(turn))                   # squares of numbers beyond 1e19 would overflow
  scaled, turned = along / size, turn / size
  below = (scaled * scaled + turned * turned) * size
  inverse = scaled / below, turned / below                   # 1 / (1 - lambda dt / 2)
  return (2 * inverse[0] - 1, 2 * inverse[1]), (dt * inverse[0], dt * inverse[1])
