"""CALM's energy head: one pass from a hidden state and noise to a latent vector, trained by the energy score.

Continuous Autoregressive Language Models, arXiv 2510.27688, sections 3.2 and 3.3; shaochenze/calm, models/modeling_energy.py (MLPGenerator), which
is followed where it differs: a block has three linear maps, the noise and the condition stand side by side, both are normed, the output is a
two-layer MLP whose last map starts at zero, noise has 64 entries.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.layers.linear import linear, linear_params
from ssmlab.layers.norms import LayerNorm
from ssmlab.ops.energy_score import energy_score
from ssmlab.ops.projection import project

NORM = LayerNorm(1e-6)


class Head:
  """What a head is to CALM.  Frozen dataclasses with the field `samples`.

  params(width, latent); draw_noise(key, shape, latent): all that one latent vector for each of `shape` positions is made of;
  sample(params, hidden [..., width], noise) -> [..., latent]; loss(params, hidden, mean, log_std, key) -> {name: [...]}, `loss` among them;
  calls: of the network for one vector.
  """

  tied = False                                              # no head is the embedding's table
  calls = 1

  def flops(self, width: int, latent: int) -> float:
    """Forward FLOPs of one latent vector."""
    return self.calls * self.call_flops(width, latent)

  def call_flops(self, width: int, latent: int) -> float:
    """Forward FLOPs of one call of the network."""
    return 2 * sum(p.size for p in jax.tree.leaves(self.params(width, latent), is_leaf=lambda x: hasattr(x, 'axes')) if len(p.shape) > 1)


@dataclasses.dataclass(frozen=True)
class EnergyHead(Head):
  """e = norm(W_e u + b), y = norm(W_h hidden + b);  each block: a = silu(A2 silu(A1 [norm(e), y])), [g, v] = A3 a, e += A4 (silu(g) * v);
  z = B2 silu(B1 norm(e)).  u is uniform in [-1/2, 1/2).

  blocks: number of them (the paper: layers of the backbone / 4).  noise: entries of u.
  samples, targets, alpha: N, M and the exponent of the energy score (ops.energy_score).
  """
  blocks: int = 3
  noise: int = 64
  samples: int = 8
  targets: int = 100
  alpha: float = 1.0

  def __post_init__(self):
    if self.samples < 2 or self.targets < 1 or self.noise < 1 or self.blocks < 0:
      raise ValueError(f'EnergyHead: samples={self.samples} must be at least 2, targets={self.targets} and noise={self.noise} at least 1, '
                       f'blocks={self.blocks} at least 0')
    if not 0 < self.alpha < 2:
      raise ValueError(f'EnergyHead: alpha={self.alpha} must be above 0 and below 2')

  def params(self, width: int, latent: int) -> dict[str, Any]:
    d, norm = width, lambda: NORM.params(width)
    square = lambda: linear_params(d, d, ('width', 'inner'))
    block = lambda: dict(norm=norm(), first=linear_params(2 * d, d), second=square(), gates=linear_params(d, 2 * d), down=linear_params(d, d, ('inner', 'width')))
    last = linear_params(d, latent, ('width', None), inits.zeros())
    return dict(noise=linear_params(self.noise, d, (None, 'width')), hidden=square(), norm_noise=norm(), norm_hidden=norm(),
                blocks={str(i): block() for i in range(self.blocks)}, final=dict(norm=norm(), first=square(), last=last))

  def draw_noise(self, key: jax.Array, shape: tuple[int, ...], latent: int) -> jax.Array:
    """u: float32 [*shape, noise]."""
    return jax.random.uniform(key, (*shape, self.noise), jnp.float32, -0.5, 0.5)

  def sample(self, params, hidden: jax.Array, noise: jax.Array) -> jax.Array:
    """hidden [..., width] and u [..., noise] -> [..., latent]."""
    y = NORM.apply(params['norm_hidden'], linear(params['hidden'], hidden))
    e = NORM.apply(params['norm_noise'], linear(params['noise'], noise.astype(hidden.dtype)))
    y = jnp.broadcast_to(y, e.shape)
    for index in range(self.blocks):
      block = params['blocks'][str(index)]
      # A1's halves by themselves: on a mesh with data, fsdp and tensor above 1, XLA took a wrong gradient of [norm(e), y] (jax 0.10.2, 8 CPU devices).
      of_noise, of_hidden = jnp.split(block['first']['w'], 2)
      a = project(NORM.apply(block['norm'], e), of_noise) + project(y, of_hidden) + block['first']['b']
      a = jax.nn.silu(linear(block['second'], jax.nn.silu(a)))
      gate, value = jnp.split(linear(block['gates'], a), 2, axis=-1)
      e = e + linear(block['down'], jax.nn.silu(gate) * value)
    final = params['final']
    return linear(final['last'], jax.nn.silu(linear(final['first'], NORM.apply(final['norm'], e))))

  def loss(self, params, hidden: jax.Array, mean: jax.Array, log_std: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    """Energy score of every position, lower is better: {loss, fidelity, diversity}, each [...].

    Samples are made one by one and again in the backward pass, so that the head's inner arrays are in memory for one of them.
    """
    for_noise, for_targets = jax.random.split(key)
    one = jax.checkpoint(lambda key: self.sample(params, hidden, self.draw_noise(key, hidden.shape[:-1], mean.shape[-1])))
    x = jax.lax.map(one, jax.random.split(for_noise, self.samples))
    std = jnp.exp(log_std)
    target = lambda index: mean + std * jax.random.normal(jax.random.fold_in(for_targets, index), mean.shape, mean.dtype)
    fidelity, diversity = energy_score(x, target, self.targets, self.alpha)
    return dict(loss=fidelity - diversity, fidelity=fidelity, diversity=diversity)
