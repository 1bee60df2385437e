"""CALM's diffusion head: denoising diffusion with a cosine schedule, predicted noise and learned variance.

Improved Denoising Diffusion Probabilistic Models, arXiv 2102.09672, eq. 15-17; in CALM, arXiv 2510.27688, section 7.4; shaochenze/calm,
models/modeling_diffusion.py and models/diffusion, which adds the variational term that the paper does not mention.  At step 0 that term is
the likelihood of values rounded to 255 levels, left over from images and kept so that losses compare.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.models.calm.energy_head import Head
from ssmlab.models.calm.modulated import network, network_params

BIN = 1 / 255               # half a level of an image


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
  """One number for every step, float64: betas and what follows from them.  at: the training step that each stands for."""
  betas: np.ndarray
  at: np.ndarray

  @property
  def kept(self) -> np.ndarray:
    """Share of the signal's variance after each step, alpha bar."""
    return np.cumprod(1 - self.betas)

  def table(self) -> dict[str, jax.Array]:
    """float32 [steps]: factors of the formulas, named after what they multiply."""
    kept = self.kept
    before = np.append(1.0, kept[:-1])
    variance = self.betas * (1 - before) / (1 - kept)
    smallest = np.log(np.append(variance[1:2] if len(variance) > 1 else variance, variance[1:]))       # the first is 0; its neighbour stands in
    numbers = dict(signal=np.sqrt(kept), noise=np.sqrt(1 - kept), unscale=np.sqrt(1 / kept), unnoise=np.sqrt(1 / kept - 1),
                   mean_start=self.betas * np.sqrt(before) / (1 - kept), mean_now=(1 - before) * np.sqrt(1 - self.betas) / (1 - kept),
                   smallest=smallest, largest=np.log(self.betas), at=self.at)
    return {name: jnp.asarray(value, jnp.float32) for name, value in numbers.items()}


@functools.lru_cache(maxsize=8)
def schedule(steps: int, used: int) -> Schedule:
  """The cosine schedule of `steps` steps, betas at most 0.999, and of it `used` steps evenly spaced, whose betas skip the others."""
  level = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
  betas = np.array([min(1 - level((i + 1) / steps) / level(i / steps), 0.999) for i in range(steps)])
  stride = (steps - 1) / (used - 1) if used > 1 else 1.0
  at = np.array([round(stride * i) for i in range(used)])
  kept = np.cumprod(1 - betas)[at]
  return Schedule(1 - kept / np.append(1.0, kept[:-1]), at)


@dataclasses.dataclass(frozen=True)
class DiffusionHead(Head):
  """loss = mean over entries of (noise - predicted)^2, + KL of the reverse step in bits, in which the prediction is held constant.

  blocks: of the network.  samples: draws of (y, noise, step) for each position.
  steps: of training.  sampling_steps: of generation, evenly spaced among them, one call each.
  """
  blocks: int = 3
  samples: int = 8
  steps: int = 1000
  sampling_steps: int = 100

  def __post_init__(self):
    if self.samples < 1 or self.blocks < 0 or not 2 <= self.sampling_steps <= self.steps:
      raise ValueError(f'DiffusionHead: samples={self.samples} must be at least 1, blocks={self.blocks} at least 0, '
                       f'sampling_steps={self.sampling_steps} from 2 to steps={self.steps}')

  @property
  def calls(self) -> int:
    return self.sampling_steps

  def params(self, width: int, latent: int) -> dict[str, Any]:
    return network_params(width, latent, 2 * latent, self.blocks)

  def draw_noise(self, key: jax.Array, shape: tuple[int, ...], latent: int) -> jax.Array:
    """float32 [*shape, sampling_steps + 1, latent]: the start, and what every step adds, the last one nothing."""
    return jax.random.normal(key, (*shape, self.sampling_steps + 1, latent), jnp.float32)

  def reverse(self, params, x: jax.Array, index: jax.Array, hidden: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of generation, from index [...] to the one below: (x before, predicted start), each [..., latent]."""
    table = {name: value[index][..., None] for name, value in schedule(self.steps, self.sampling_steps).table().items()}
    epsilon, log_variance = self._predicted(params, x, table, hidden)
    start = table['unscale'] * x - table['unnoise'] * epsilon
    mean = table['mean_start'] * start + table['mean_now'] * x
    return mean + jnp.where((index > 0)[..., None], jnp.exp(0.5 * log_variance) * noise, 0.0), start

  def sample(self, params, hidden: jax.Array, noise: jax.Array) -> jax.Array:
    """hidden [..., width] and noise [..., sampling_steps + 1, latent] -> [..., latent]."""
    hidden = jnp.broadcast_to(hidden, (*noise.shape[:-2], hidden.shape[-1]))
    added = jnp.moveaxis(noise, -2, 0)

    def step(x, xs):
      index, noise = xs
      return self.reverse(params, x, jnp.broadcast_to(index, x.shape[:-1]), hidden, noise)[0], None
    return jax.lax.scan(step, added[0], (jnp.arange(self.sampling_steps)[::-1], added[1:]))[0]

  def error(self, params, hidden: jax.Array, y: jax.Array, noise: jax.Array, index: jax.Array) -> dict[str, jax.Array]:
    """Of every position for given draws: y, noise [..., latent], index int [...] -> {loss, noise_error, bound}, each [...]."""
    table = {name: value[index][..., None] for name, value in schedule(self.steps, self.steps).table().items()}
    x = table['signal'] * y + table['noise'] * noise
    epsilon, log_variance = self._predicted(params, x, table, hidden)
    wrong = jnp.mean(jnp.square(noise - epsilon), axis=-1)
    start = table['unscale'] * x - table['unnoise'] * jax.lax.stop_gradient(epsilon)
    mean = lambda start: table['mean_start'] * start + table['mean_now'] * x
    true, model = mean(y), mean(start)
    divergence = 0.5 * (log_variance - table['smallest'] - 1 + jnp.exp(table['smallest'] - log_variance)
                        + jnp.square(true - model) * jnp.exp(-log_variance))
    bound = jnp.where((index == 0)[..., None], -_log_of_level(y, model, 0.5 * log_variance), divergence)
    bound = jnp.mean(bound, axis=-1) / math.log(2)
    return dict(loss=wrong + bound, noise_error=wrong, bound=bound)

  def loss(self, params, hidden: jax.Array, mean: jax.Array, log_std: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    """{loss, noise_error, bound}: [...], means over the samples."""
    @jax.checkpoint
    def one(key):
      for_y, for_noise, for_index = jax.random.split(key, 3)
      y = mean + jnp.exp(log_std) * jax.random.normal(for_y, mean.shape, mean.dtype)
      noise = jax.random.normal(for_noise, y.shape, y.dtype)
      return self.error(params, hidden, y, noise, jax.random.randint(for_index, y.shape[:-1], 0, self.steps))
    return jax.tree.map(lambda each: jnp.mean(each, axis=0), jax.lax.map(one, jax.random.split(key, self.samples)))

  def _predicted(self, params, x: jax.Array, table, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(noise, log variance of the reverse step): the network says where the latter is between its smallest and its largest."""
    both = network(params, x, table['at'][..., 0], hidden).astype(x.dtype)
    epsilon, share = jnp.split(both, 2, axis=-1)
    share = (share + 1) / 2
    return epsilon, share * table['largest'] + (1 - share) * table['smallest']


def _log_of_level(x: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
  """log of the Gaussian's mass on the level of x, levels 2/255 apart on [-1, 1] and open at both ends; the normal's integral by its tanh form."""
  below = lambda value: 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value ** 3)))
  scaled = lambda edge: (x - mean + edge) * jnp.exp(-log_std)
  upper, lower = below(scaled(BIN)), below(scaled(-BIN))
  mass = jnp.where(x < -0.999, upper, jnp.where(x > 0.999, 1 - lower, upper - lower))
  return jnp.log(jnp.maximum(mass, 1e-12))
