"""The network that CALM's flow and diffusion heads share: an MLP whose norms are shifted, scaled and gated by time and condition (adaLN).

Scalable Diffusion Models with Transformers, arXiv 2212.09748, section 3.2; shaochenze/calm, models/diffusion; after MAR, arXiv 2406.11838.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.layers.linear import linear, linear_params
from ssmlab.layers.norms import LayerNorm, normalise

FREQUENCIES = 128
EPS = 1e-6


def network_params(width: int, latent: int, outputs: int, blocks: int) -> dict[str, Any]:
  """Xavier-uniform maps; modulations and the last map start at zero, so that the output is zero at first."""
  xavier, zero = inits.xavier_uniform(), inits.zeros()
  square = lambda init=xavier: linear_params(width, width, init=init)
  block = lambda: dict(norm=LayerNorm(EPS).params(width), first=square(), second=square(), modulation=linear_params(width, 3 * width, init=zero))
  normal = inits.normal(0.02)
  return dict(time_first=linear_params(2 * FREQUENCIES, width, (None, 'width'), normal), time_second=square(normal), condition=square(),
              input=linear_params(latent, width, (None, 'width'), xavier), blocks={str(i): block() for i in range(blocks)},
              modulation=linear_params(width, 2 * width, init=zero), last=linear_params(width, outputs, ('width', None), zero))


def network(params, x: jax.Array, time: jax.Array, hidden: jax.Array) -> jax.Array:
  """x [..., latent], time [...] in steps of 0..999, hidden [..., width] -> [..., outputs]."""
  angles = time.astype(jnp.float32)[..., None] * 10000.0 ** (-jnp.arange(FREQUENCIES, dtype=jnp.float32) / FREQUENCIES)
  waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1).astype(hidden.dtype)
  told = linear(params['time_second'], jax.nn.silu(linear(params['time_first'], waves)))
  condition = jax.nn.silu(told + linear(params['condition'], hidden))
  x = linear(params['input'], x.astype(hidden.dtype))
  for index in range(len(params['blocks'])):
    block = params['blocks'][str(index)]
    shift, scale, gate = jnp.split(linear(block['modulation'], condition), 3, axis=-1)
    inner = LayerNorm(EPS).apply(block['norm'], x) * (1 + scale) + shift
    x = x + gate * linear(block['second'], jax.nn.silu(linear(block['first'], inner)))
  shift, scale = jnp.split(linear(params['modulation'], condition), 2, axis=-1)
  return linear(params['last'], normalise(x, EPS) * (1 + scale) + shift)
