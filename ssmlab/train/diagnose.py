"""Where a number stopped being finite."""

import jax
import jax.numpy as jnp

from ssmlab.core import mesh as meshes


def _bad(tree) -> bool:
  return any(not bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


def first_non_finite(experiment, params, batch, mesh) -> str:
  """The first layer whose output, parameter or gradient is not finite for this batch, in words.

  The network is run with 0, 1, 2, ... of its blocks, which only a failed run can afford.
  """
  with meshes.use(mesh):
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
      if _bad(leaf):
        return f'parameter {jax.tree_util.keystr(path, simple=True, separator="/")}'
    layer = experiment.model.first_non_finite(params, batch['tokens'], batch['segment_ids'])
    if layer:
      return layer
    grads = jax.grad(lambda p: experiment.task.loss(experiment.model, p, batch, jax.random.key(0))[0])(params)
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    if _bad(leaf):
      return f'the gradient of {jax.tree_util.keystr(path, simple=True, separator="/")}'
  return 'the loss (the layers and the gradient are finite when computed again)'
