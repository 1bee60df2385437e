"""Normalisation over channels.  Statistics in float32, result in the input's dtype."""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import vector


def _wide(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def rms_normalise(x: jax.Array, eps: float) -> jax.Array:
  """x / sqrt(mean(x^2) + eps) over the last axis, without weights."""
  wide = _wide(x)
  return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)).astype(x.dtype)


def normalise(x: jax.Array, eps: float) -> jax.Array:
  """(x - mean) / sqrt(variance + eps) over the last axis, biased variance, without weights."""
  wide = _wide(x)
  centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
  return (centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)).astype(x.dtype)


def unit(x: jax.Array, eps: float = 1e-24) -> jax.Array:
  """x / max(||x||_2, sqrt(eps)) over the last axis; the gradient at zero is finite, which jnp.linalg.norm's is not."""
  wide = _wide(x)
  return (wide * jax.lax.rsqrt(jnp.maximum(jnp.sum(wide * wide, axis=-1, keepdims=True), eps))).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class RMSNorm:
  """scale * x / sqrt(mean(x^2) + eps).  Root Mean Square Layer Normalization, arXiv 1910.07467, eq. 4.

  zero_centred: the parameter is scale - 1 and starts at 0 (Gemma), instead of scale, starting at 1.
  """
  eps: float = 1e-6
  zero_centred: bool = False

  def params(self, width: int):
    return dict(scale=vector(width, None, inits.constant(0.0 if self.zero_centred else 1.0)))

  def apply(self, params, x: jax.Array) -> jax.Array:
    """x [..., width] -> the same."""
    if self.zero_centred:                                   # Gemma multiplies in float32, Llama after the cast
      wide = rms_normalise(_wide(x), self.eps)
      return (wide * (1 + params['scale'].astype(wide.dtype))).astype(x.dtype)
    return rms_normalise(x, self.eps) * params['scale'].astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class LayerNorm:
  """scale * (x - mean) / sqrt(variance + eps) + bias.  Layer Normalization, arXiv 1607.06450, eq. 4.

  bias: False leaves the last term out (ModernBERT).
  """
  eps: float = 1e-5
  bias: bool = True

  def params(self, width: int):
    scale = dict(scale=vector(width, None, inits.constant(1.0)))
    return scale | dict(bias=vector(width, None)) if self.bias else scale

  def apply(self, params, x: jax.Array) -> jax.Array:
    """x [..., width] -> the same."""
    wide = normalise(_wide(x), self.eps)
    wide = wide * params['scale'].astype(wide.dtype)
    return (wide + params['bias'].astype(wide.dtype) if self.bias else wide).astype(x.dtype)
