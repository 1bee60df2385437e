"""CALM's flow-matching head.  Flow Matching, arXiv 2210.02747; in CALM, arXiv 2510.27688, section 7.4; shaochenze/calm, models/modeling_flow.py.

The network is told floor(1000 t), and sampling takes the midpoint rule with 10 intervals, as in the code (the paper's text: 100 iterations).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssmlab.models.calm.energy_head import Head
from ssmlab.models.calm.modulated import network, network_params

STEPS = 1000                # the network's time is in thousandths


@dataclasses.dataclass(frozen=True)
class FlowHead(Head):
  """loss = mean over entries of (net(x_t, t, hidden) - (y - x_0))^2,  x_t = (1 - t) x_0 + t y,  x_0 ~ N(0, 1), t uniform, y of the posterior.

  blocks: of the network.  samples: draws of (y, x_0, t) for each position.  intervals: of the midpoint rule, two calls each.
  """
  blocks: int = 3
  samples: int = 8
  intervals: int = 10

  def __post_init__(self):
    if min(self.samples, self.intervals) < 1 or self.blocks < 0:
      raise ValueError(f'FlowHead: samples={self.samples} and intervals={self.intervals} must be at least 1, blocks={self.blocks} at least 0')

  @property
  def calls(self) -> int:
    return 2 * self.intervals

  def params(self, width: int, latent: int) -> dict[str, Any]:
    return network_params(width, latent, latent, self.blocks)

  def draw_noise(self, key: jax.Array, shape: tuple[int, ...], latent: int) -> jax.Array:
    """x_0: float32 [*shape, latent]."""
    return jax.random.normal(key, (*shape, latent), jnp.float32)

  def velocity(self, params, x: jax.Array, t: jax.Array, hidden: jax.Array) -> jax.Array:
    """x [..., latent] at time t [...] in [0, 1] -> float32 [..., latent]."""
    return network(params, x, jnp.floor(STEPS * t), hidden).astype(x.dtype)

  def sample(self, params, hidden: jax.Array, noise: jax.Array) -> jax.Array:
    """hidden [..., width] and x_0 [..., latent] -> x_1 [..., latent]."""
    size = 1 / self.intervals

    def interval(x, index):
      at = lambda t, x: self.velocity(params, x, jnp.broadcast_to(t, x.shape[:-1]), hidden)
      t = index.astype(jnp.float32) * size
      return x + size * at(t + size / 2, x + size / 2 * at(t, x)), None
    hidden = jnp.broadcast_to(hidden, (*noise.shape[:-1], hidden.shape[-1]))
    return jax.lax.scan(interval, noise, jnp.arange(self.intervals))[0]

  def error(self, params, hidden: jax.Array, y: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """The loss of every position for given draws: y, noise [..., latent], t [...] -> [...]."""
    mixed = (1 - t)[..., None] * noise + t[..., None] * y
    return jnp.mean(jnp.square(self.velocity(params, mixed, t, hidden) - (y - noise)), axis=-1)

  def loss(self, params, hidden: jax.Array, mean: jax.Array, log_std: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    """{loss: [...]}, the mean over the samples."""
    @jax.checkpoint
    def one(key):
      for_y, for_x, for_t = jax.random.split(key, 3)
      y = mean + jnp.exp(log_std) * jax.random.normal(for_y, mean.shape, mean.dtype)
      return self.error(params, hidden, y, jax.random.normal(for_x, y.shape, y.dtype), jax.random.uniform(for_t, y.shape[:-1], y.dtype))
    return dict(loss=jnp.mean(jax.lax.map(one, jax.random.split(key, self.samples)), axis=0))
