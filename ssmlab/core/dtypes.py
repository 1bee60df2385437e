"""Precision: parameters float32, activations as the model says, recurrent states and everything exponentiated float32."""

import jax
import jax.numpy as jnp

from ssmlab.core.params import Param

ACTIVATIONS = ('float32', 'bfloat16', 'float64')


def activation_dtype(name: str) -> jnp.dtype:
  """'float32' | 'bfloat16' | 'float64' (for tests) -> dtype.  Raises ValueError naming the allowed ones."""
  if name not in ACTIVATIONS:
    raise ValueError(f'activations: {name!r} is not one of {", ".join(ACTIVATIONS)}')
  return jnp.dtype(name)


def cast(declared, params, dtype):
  """Parameters as a block computes with them: `dtype`, except those declared `full_precision`, which stay float32.

  declared: tree of Param; params: the same tree of arrays.
  """
  def one(param: Param, array):
    return array if param.full_precision and dtype == jnp.bfloat16 else array.astype(dtype)
  return jax.tree.map(one, declared, params, is_leaf=lambda x: isinstance(x, Param))
