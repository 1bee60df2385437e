"""One training step: a jitted function from (state, batch) to (state, measurements)."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ssmlab.core import mesh as meshes
from ssmlab.core.params import init


@flax.struct.dataclass
class TrainState:
  """Everything that a run is: the batch of a step is a function of the step, so there is no more."""
  step: jax.Array                 # int32, steps done
  params: Any
  opt_state: Any
  key: jax.Array                  # never changes; a step folds its number in


@dataclasses.dataclass(frozen=True)
class Trainer:
  """The compiled pieces of a run.

  accumulate: micro-batches per step; their sums are added before one division, so the result is that of the whole batch.
  """
  model: Any
  task: Any
  tx: optax.GradientTransformation
  mesh: Mesh
  schedule: Any
  accumulate: int = 1

  def shardings(self) -> TrainState:
    """NamedShardings of the whole state; without them the optimiser's zeros would all sit on one device."""
    declared = self.model.params()
    params = meshes.shardings(declared, self.mesh)
    whole = meshes.replicated(self.mesh)
    shapes = jax.eval_shape(self.tx.init, self.model.shapes())
    masked = lambda leaf: isinstance(leaf, optax.MaskedNode)            # an array that another part of the optimiser has
    opt_state = optax.tree_map_params(self.tx, lambda leaf, s: leaf if masked(leaf) else s, shapes, params, transform_non_params=lambda _: whole,
                                      is_leaf=masked)
    return TrainState(step=whole, params=params, opt_state=opt_state, key=whole)

  def fresh(self, seed: int) -> TrainState:
    """The state before the first step, born sharded."""
    return jax.jit(self._first, out_shardings=self.shardings())(seed)

  def _first(self, seed) -> TrainState:
    key = jax.random.key(seed)
    params = init(jax.random.fold_in(key, 0), self.model.params())
    return TrainState(step=jnp.int32(0), params=params, opt_state=self.tx.init(params), key=jax.random.fold_in(key, 1))

  def _gradient(self, params, batch, key):
    value_and_grad = jax.value_and_grad(lambda p, b, k: self.task.loss(self.model, p, b, k), has_aux=True)
    if self.accumulate == 1:
      return value_and_grad(params, batch, key)
    split = lambda x: x.reshape(x.shape[0] // self.accumulate, self.accumulate, *x.shape[1:]).swapaxes(0, 1)

    def add(total, xs):
      return jax.tree.map(jnp.add, total, value_and_grad(params, *xs)), None
    micro = jax.tree.map(split, batch)
    keys = jax.random.split(key, self.accumulate)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype),
                         jax.eval_shape(value_and_grad, params, jax.tree.map(lambda x: x[0], micro), keys[0]))
    return jax.lax.scan(add, zeros, (micro, keys))[0]

  def _step(self, state: TrainState, batch):
    (total, (count, sums)), grads = self._gradient(state.params, batch, jax.random.fold_in(state.key, state.step))
    count = jnp.maximum(count, 1)
    share = 1 / count
    norm = optax.tree.norm(grads) * share
    finite = jnp.isfinite(norm) & jnp.isfinite(total)

    def better(params, opt_state):
      updates, opt_state = self.tx.update(jax.tree.map(lambda g: g * share, grads), opt_state, params)        # here: in one pass with the rest
      return optax.apply_updates(params, updates), opt_state
    # A bad step changes nothing.  A choice of branches: one of numbers is not done in place, 45 ms for 26 with the norm (21M parameters, 2 cores CPU).
    params, opt_state = jax.lax.cond(finite, better, lambda *old: old, state.params, state.opt_state)
    read = sums.get('tokens', count)                           # a task that predicts some of the tokens says how many it read
    measured = {name: value / count for name, value in sums.items() if name != 'tokens'}
    measured |= dict(grad_norm=norm, lr=self.schedule(state.step), finite=finite, targets=read)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), measured

  def compiled(self):
    """(state, batch) -> (state, measurements); the state's buffers are reused."""
    step = self._jitted()

    def run(state, batch):
      with meshes.use(self.mesh):
        return step(state, batch)
    return run

  def shapes(self) -> TrainState:
    """The state's shapes and types."""
    return jax.eval_shape(self._first, 0)

  def lower(self, batch):
    """The step for a batch of ShapeDtypeStructs, lowered for the mesh's devices, which need not be there."""
    state = jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), self.shapes(), self.shardings())
    step = self._jitted()                                    # outside: initialisers compute a few numbers, which described devices cannot
    with meshes.use(self.mesh):
      return step.lower(state, batch)

  def _jitted(self):
    return jax.jit(self._step, donate_argnums=0, out_shardings=(self.shardings(), meshes.replicated(self.mesh)))
