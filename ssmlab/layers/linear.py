"""One linear map with a bias, x W + b, for networks that name their maps one by one."""

import jax

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.ops.projection import project


def linear_params(inputs: int, outputs: int, axes: tuple[str | None, str | None] = ('width', 'inner'), init=inits.normal(0.02), bias=inits.zeros()):
  """Declarations of W [inputs, outputs] and b [outputs]."""
  return dict(w=Param((inputs, outputs), axes, init), b=vector(outputs, axes[1] if axes[1] != 'width' else None, bias))


def linear(params, x: jax.Array) -> jax.Array:
  """x [..., inputs] -> [..., outputs]."""
  return project(x, params['w']) + params['b']
