"""Griffin's recurrent block around the RG-LRU.  Griffin, arXiv 2402.19427, section 2.4 and figure 2;
author code google-deepmind/recurrentgemma, recurrentgemma/jax/layers.py and modules.py.

The paper words the start of Lambda for a^c, the code for a itself: we follow the code (a0^2 uniform in [0.9^2, 0.999^2]).
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.mixers import Mixer
from ssmlab.ops import diagonal_recurrence, segments
from ssmlab.ops.projection import project
from ssmlab.ops.short_convolution import short_convolution

LARGEST_SQRT_DERIVATIVE = 1000.0


@jax.custom_vjp
def bounded_sqrt(x: jax.Array) -> jax.Array:
  """sqrt(x) whose derivative is at most 1000: at a = 1 the true one is infinite and makes bfloat16 training NaN."""
  return jnp.sqrt(x)


def _sqrt_forward(x):
  return jnp.sqrt(x), x


def _sqrt_backward(x, g):
  return (g * jax.lax.rsqrt(jnp.maximum(4 * x, LARGEST_SQRT_DERIVATIVE ** -2)),)


bounded_sqrt.defvjp(_sqrt_forward, _sqrt_backward)


@dataclasses.dataclass(frozen=True)
class RGLRU(Mixer):
  """y = (gelu(x W_y) * h) W_out,  h[t] = a[t] h[t-1] + sqrt(1 - a[t]^2) i[t] u[t],  log a = -c r softplus(Lambda),  u = conv(x W_x).

  inner: width of the recurrence.  heads: blocks of the block-diagonal gate matrices; must divide inner.
  conv_width: steps of the short convolution.  c: sharpness of the decay.  gate_variance: variance of the gate weights times block width.
  """
  inner: int
  heads: int
  conv_width: int = 4
  c: float = 8.0
  gate_variance: float = 0.01

  def __post_init__(self):
    if self.inner % self.heads:
      raise ValueError(f'RGLRU: inner={self.inner} is not a multiple of heads={self.heads}')

  def params(self, width: int):
    block = self.inner // self.heads
    gate = lambda: Param((self.heads, block, block), ('heads', None, None), inits.fan_in(self.gate_variance ** 0.5))
    return dict(
        w_x=Param((width, self.inner), ('width', 'inner')), b_x=vector(self.inner, 'inner'),
        w_y=Param((width, self.inner), ('width', 'inner')), b_y=vector(self.inner, 'inner'),
        conv=Param((self.conv_width, self.inner), (None, 'inner'), inits.normal((0.01 / self.conv_width) ** 0.5), weight_decay=False),
        b_conv=vector(self.inner, 'inner'),
        w_input_gate=gate(), b_input_gate=vector(self.inner, 'inner'), w_recurrence_gate=gate(), b_recurrence_gate=vector(self.inner, 'inner'),
        decay=vector(self.inner, 'inner', _decay, full_precision=True),
        w_out=Param((self.inner, width), ('inner', 'width'), inits.residual(self.inner ** -0.5)), b_out=vector(width, None))

  def init_state(self, width: int, batch: int, max_length: int):
    return dict(h=jnp.zeros((batch, self.inner), jnp.float32),
                conv=jnp.zeros((batch, self.conv_width - 1, self.inner), jnp.float32),
                position=jnp.zeros((batch,), jnp.int32))

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    side = jax.nn.gelu(project(x, params['w_y']) + params['b_y'], approximate=True)
    u, tail = short_convolution(project(x, params['w_x']) + params['b_x'], params['conv'], params['b_conv'],
                                None if state is None else state['conv'], segment_ids)
    carried = jnp.zeros(x.shape[:1], jnp.int32) if state is None else state['position']
    positions, position = segments.positions(segment_ids, x.shape[1], carried)
    a, b = self._gates(params, u, positions == 0)
    h, last = diagonal_recurrence(a, b, None if state is None else state['h'], segment_ids)
    y = project(h.astype(x.dtype) * side, params['w_out']) + params['b_out']
    return y, None if state is None else dict(h=last, conv=tail.astype(jnp.float32), position=position)

  def _gates(self, params, u, first):
    """Decay and input of the recurrence, float32 [batch, time, inner]; a document's first input enters unscaled."""
    blocks = u.reshape(*u.shape[:2], self.heads, -1)
    gate = lambda name: jax.nn.sigmoid(jnp.einsum('bthi,hij->bthj', blocks, params[f'w_{name}_gate']).reshape(u.shape) + params[f'b_{name}_gate'])
    wide = params['decay'].dtype
    log_a = -self.c * gate('recurrence').astype(wide) * jax.nn.softplus(params['decay'])
    multiplier = jnp.where(first[..., None], 1.0, bounded_sqrt(-jnp.expm1(2 * log_a)))
    return jnp.exp(log_a), multiplier * (gate('input') * u).astype(wide)


def _decay(key, shape, layer):
  """Lambda with exp(-softplus(Lambda))^2 uniform in [0.9^2, 0.999^2]."""
  squared = jax.random.uniform(key, shape, jnp.float32, 0.9 ** 2 + 1e-8, 0.999 ** 2)
  return jnp.log(jnp.expm1(-0.5 * jnp.log(squared)))


TINY = RGLRU(inner=16, heads=2)
