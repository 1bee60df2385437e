"""What minGRU and minLSTM share: the positive candidate and the short convolution before the gates.

Were RNNs All We Needed?, arXiv 2410.01201; author code BorealisAI/minRNNs, models/minRNNs.py and models/model.py.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.ops.projection import project
from ssmlab.ops.short_convolution import short_convolution


def positive(x: jax.Array) -> jax.Array:
  """g(x) = x + 0.5 for x >= 0, sigmoid(x) below: continuous, increasing, above 0.  Appendix B.1 (the log-space form takes its logarithm)."""
  return jnp.where(x >= 0, x + 0.5, jax.nn.sigmoid(x))


def linear(inputs: int, outputs: int, axes: tuple[str, str], bias_axis: str | None, **hints) -> tuple[Param, Param]:
  """Matrix and bias with PyTorch's start."""
  bound = inputs ** -0.5
  return (Param((inputs, outputs), axes, inits.torch_linear(), **hints), vector(outputs, bias_axis, inits.uniform(-bound, bound)))


@dataclasses.dataclass(frozen=True)
class ResidualConvolution:
  """x + (conv(x) + a) W + b: a causal depthwise convolution, then a map over channels.

  conv_width: steps of the convolution; 4 in the paper's language models ("Conv4").
  The authors place it with its residual before the block's norm, a mixer here comes after the norm.
  """
  conv_width: int

  def params(self, width: int):
    bound = self.conv_width ** -0.5
    taps = inits.uniform(-bound, bound)
    w_mix, b_mix = linear(width, width, ('width', 'inner'), None)
    return dict(conv=Param((self.conv_width, width), (None, 'inner'), taps), b_conv=vector(width, 'inner', taps), w_mix=w_mix, b_mix=b_mix)

  def init_state(self, width: int, batch: int):
    return jnp.zeros((batch, self.conv_width - 1, width), jnp.float32)

  def apply(self, params, x: jax.Array, tail=None, segment_ids: jax.Array | None = None):
    """x [batch, time, width] -> (the same, next tail in float32)."""
    y, tail = short_convolution(x, params['conv'], params['b_conv'], tail, segment_ids)
    return x + project(y, params['w_mix']) + params['b_mix'], tail.astype(jnp.float32)
