"""Initialisers.  Each returns a function (key, shape, layer) -> float32 array; matrices are [..., in, out]."""

import math

import jax
import jax.numpy as jnp


def constant(value: float):
  """Every entry equals `value`."""
  return lambda key, shape, layer: jnp.full(shape, value, jnp.float32)


def zeros():
  return constant(0.0)


def normal(std: float):
  """N(0, std^2)."""
  return lambda key, shape, layer: std * jax.random.normal(key, shape, jnp.float32)


def uniform(low: float, high: float):
  """U(low, high)."""
  return lambda key, shape, layer: jax.random.uniform(key, shape, jnp.float32, low, high)


def fan_in(scale: float = 1.0, axis: int = -2):
  """N(0, scale^2 / n), n = size of the input axis (`axis`; the whole size for a vector): keeps the variance of a sum of n terms."""
  def draw(key, shape, layer):
    inputs = shape[axis] if len(shape) >= 2 else shape[0]
    return scale / math.sqrt(inputs) * jax.random.normal(key, shape, jnp.float32)
  return draw


def residual(std: float):
  """N(0, std^2 / (2 depth)): projections back to the residual stream, GPT-2's depth scaling."""
  def draw(key, shape, layer):
    return std / math.sqrt(2 * layer.count) * jax.random.normal(key, shape, jnp.float32)
  return draw


def into_and_out(inner: int, std: float | None, depth_scaled: bool):
  """Initialisers of a branch's first maps and of its last one, from `inner` channels back to the residual stream.

  std: of the normal; None: 1 / sqrt(in).  depth_scaled: the last one is divided by sqrt(2 layers).
  """
  last = inner ** -0.5 if std is None else std
  return fan_in() if std is None else normal(std), residual(last) if depth_scaled else normal(last)


def xavier_uniform(gain: float = 1.0):
  """U(-r, r), r = gain * sqrt(6 / (in + out))."""
  def draw(key, shape, layer):
    limit = gain * math.sqrt(6 / (shape[-2] + shape[-1]))
    return jax.random.uniform(key, shape, jnp.float32, -limit, limit)
  return draw


def torch_linear():
  """U(-r, r), r = 1 / sqrt(in): PyTorch's default for Linear weights."""
  def draw(key, shape, layer):
    limit = 1 / math.sqrt(shape[-2])
    return jax.random.uniform(key, shape, jnp.float32, -limit, limit)
  return draw


def orthogonal(gain: float = 1.0):
  """`gain` times a matrix with orthonormal rows or columns (whichever are fewer), uniform over all such matrices.

  The orthogonal factor of a Gaussian matrix, by X <- 1.5 X - 0.5 X X^T X.  Matrix products only: jnp.linalg.qr of several stacked
  matrices in one program deadlocks on the CPU of jaxlib 0.10.2, and is slow on accelerators.
  """
  def draw(key, shape, layer):
    rows, columns = shape[-2:]
    x = jax.random.normal(key, shape, jnp.float32) / (math.sqrt(rows) + math.sqrt(columns))
    x = x if rows >= columns else x.swapaxes(-1, -2)
    product = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    x = jax.lax.fori_loop(0, 40, lambda _, x: 1.5 * x - 0.5 * product(x, product(x.swapaxes(-1, -2), x)), x)
    return gain * (x if rows >= columns else x.swapaxes(-1, -2))
  return draw


def log_uniform(low: float, high: float, after=lambda x: x):
  """after(x) with log x uniform in [log low, log high]: time constants."""
  def draw(key, shape, layer):
    return after(jnp.exp(jax.random.uniform(key, shape, jnp.float32, math.log(low), math.log(high))))
  return draw


def softplus_inverse(x: jax.Array) -> jax.Array:
  """y with softplus(y) = x, for x > 0."""
  return x + jnp.log(-jnp.expm1(-x))


def log_of_uniform(low: float, high: float):
  """log x with x uniform in [low, high], drawn in float32: rates that are kept as their logarithm."""
  return lambda key, shape, layer: jnp.log(jax.random.uniform(key, shape, jnp.float32, low, high))


def over_root_depth(draw):
  """`draw` divided by the square root of the number of layers: the last map of a residual branch, as in GPT-2 and Mamba."""
  return lambda key, shape, layer: draw(key, shape, layer) / math.sqrt(layer.count)


def by_layer(function):
  """function(layer) -> vector along the last axis, for values that the authors write as a formula in depth and channel.

  The vector is broadcast to the declared shape.
  """
  return lambda key, shape, layer: jnp.broadcast_to(jnp.asarray(function(layer), jnp.float32), shape)
