"""The gated unit that closes the diagonal state-space layers: S4D, S5, LRU."""

import dataclasses

import jax

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.ops.projection import project


@dataclasses.dataclass(frozen=True)
class GLU:
  """(a W + b) * sigmoid(a V + c),  a = gelu(x).  Language Modeling with Gated Convolutional Networks, arXiv 1612.08083, section 2.

  half: a * sigmoid(a V + c), without W and b (S5's 'half_glu1').
  torch: PyTorch's start (uniform, biases too) and the exact GELU, instead of Flax's (truncated normal, biases 0) and the tanh form.
  """
  half: bool = False
  torch: bool = False

  def params(self, width: int):
    bound = width ** -0.5
    start = inits.torch_linear() if self.torch else lambda key, shape, layer: jax.nn.initializers.lecun_normal()(key, shape)
    bias = inits.uniform(-bound, bound) if self.torch else inits.zeros()
    return {name: value for suffix in (('gate',) if self.half else ('gate', 'out'))
            for name, value in ((f'w_{suffix}', Param((width, width), ('inner', 'width'), start)), (f'b_{suffix}', vector(width, None, bias)))}

  def apply(self, params, x: jax.Array) -> jax.Array:
    """x [..., width] -> the same."""
    a = jax.nn.gelu(x, approximate=not self.torch)
    gate = jax.nn.sigmoid(project(a, params['w_gate']) + params['b_gate'])
    return (a if self.half else project(a, params['w_out']) + params['b_out']) * gate
