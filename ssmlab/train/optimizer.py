"""Optimisers: configs that turn the parameters' declarations into an optax transformation."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from ssmlab.core.params import Param, hints

DECAYS = ('cosine', 'linear', 'exponential', 'constant', 'stable')


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Linear warm-up to `peak_lr`, `hold_steps` steps there, then one of five courses to the last step.

  decay: 'cosine', 'linear' or 'exponential' (by the same factor each step) down to end_ratio * peak_lr, 'constant', or 'stable' (constant,
    and linear over the last fifth; warm-up, stable, decay: arXiv 2405.18392).
  """
  peak_lr: float = 1e-3
  warmup_steps: int = 100
  decay: str = 'cosine'
  end_ratio: float = 0.1
  hold_steps: int = 0

  def __post_init__(self):
    if self.decay not in DECAYS:
      raise ValueError(f'decay={self.decay!r} is not one of {", ".join(DECAYS)}')
    if self.decay == 'exponential' and self.end_ratio <= 0:
      raise ValueError(f"end_ratio={self.end_ratio} must be above 0 with decay='exponential'")

  def schedule(self, steps: int):
    """Step (0-based) -> learning rate.  The first step has peak_lr / warmup_steps, not 0."""
    warmup = max(min(self.warmup_steps, steps), 1)
    held = warmup + self.hold_steps
    after = max(steps - held, 1)

    def rate(step):
      past = jnp.clip((step + 1 - held) / after, 0.0, 1.0)
      start = self.peak_lr * jnp.minimum((step + 1) / warmup, 1.0)
      if self.decay == 'exponential':
        return start * self.end_ratio ** past
      down = dict(cosine=0.5 * (1 + jnp.cos(jnp.pi * past)), linear=1 - past, constant=jnp.ones_like(past),
                  stable=jnp.clip((1 - past) / 0.2, 0.0, 1.0))[self.decay]
      return start * (self.end_ratio + (1 - self.end_ratio) * down)
    return rate


@dataclasses.dataclass(frozen=True)
class AdamW(Schedule):
  """Adam with decoupled weight decay.  Decoupled Weight Decay Regularization, arXiv 1711.05101, algorithm 2.

  Parameters declared without weight decay are not decayed; a declared rate multiplies the whole update.
  b1, b2, eps: Adam's; weight_decay: per unit of learning rate; clip: bound on the norm of the whole gradient (0: none).
  """
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1
  clip: float = 1.0

  def transform(self, declared, steps: int) -> optax.GradientTransformation:
    """declared: tree of Param.  steps: length of the run, for the schedule."""
    rates = hints(declared, 'rate')
    by_rate = optax.stateless(lambda updates, _: jax.tree.map(lambda u, r: u * r, updates, rates))
    return optax.chain(
        optax.clip_by_global_norm(self.clip) if self.clip else optax.identity(),
        self._direction(declared),
        optax.add_decayed_weights(self.weight_decay, mask=hints(declared, 'weight_decay')),
        by_rate,
        optax.scale_by_learning_rate(self.schedule(steps)))

  def _direction(self, declared) -> optax.GradientTransformation:
    """Each parameter's way, without moments for those that are not learned."""
    kinds = jax.tree_util.tree_map_with_path(lambda path, p: self._kind(path, p) if p.rate else 'none', declared, is_leaf=lambda x: isinstance(x, Param))
    ways = self._ways()
    return ways['adam'] if set(jax.tree.leaves(kinds)) == {'adam'} else optax.partition(ways | dict(none=optax.set_to_zero()), kinds)

  def _kind(self, path, param: Param) -> str:
    return 'adam'

  def _ways(self) -> dict[str, optax.GradientTransformation]:
    return dict(adam=optax.scale_by_adam(self.b1, self.b2, self.eps))


@dataclasses.dataclass(frozen=True)
class Muon(AdamW):
  """Momentum made orthogonal by Newton-Schulz for the blocks' matrices, Adam for everything else.  KellerJordan/modded-nanogpt; Muon is
  scalable for LLM training, arXiv 2502.16982, section 2: updates are 0.2 sqrt(max(in, out)) times an orthogonal matrix, so that AdamW's
  learning rate and weight decay serve.

  Matrices: arrays [.., in, out] of the blocks whose name is `w` or begins with `w_`, as the lab's maps do, decayed and not of full precision;
  every layer of a stack and every head's matrix by itself.  Embedding, head, vectors, convolution kernels, decays and time constants go to Adam.
  momentum: of the matrices, Nesterov's.  iterations: of Newton-Schulz.
  """
  momentum: float = 0.95
  iterations: int = 5

  def _kind(self, path, param: Param) -> str:
    return 'muon' if path[0].key in BLOCKS and _is_matrix(path[-1].key, param) else 'adam'

  def _ways(self) -> dict[str, optax.GradientTransformation]:
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    orthogonal = optax.contrib.scale_by_muon(ns_steps=self.iterations, beta=self.momentum,
                                             weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: axes, tree))
    size = optax.stateless(lambda updates, _: jax.tree.map(lambda u: 0.2 * max(u.shape[-2:]) ** 0.5 * u, updates))
    return super()._ways() | dict(muon=optax.chain(orthogonal, size))


BLOCKS = ('blocks', 'tail', 'lead')                          # where a model declares its blocks (models.stack)


def _is_matrix(name: str, param: Param) -> bool:
  axes = len(param.shape) - (param.axes[:1] == ('layer',))
  return axes >= 2 and (name == 'w' or name.startswith('w_')) and param.weight_decay and not param.full_precision
