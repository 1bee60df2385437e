"""Mamba-2.  Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality, arXiv 2405.21060,
sections 6 and 7; author code state-spaces/mamba, mamba_ssm/modules/mamba2.py.

Initial values are the author code's; the port in transformers starts A at 1 .. heads instead of uniform in [1, 16].  The port's step by
step path forgets the limits of dt: ours has them in every call.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.norms import rms_normalise
from ssmlab.mixers import Mixer
from ssmlab.ops import linear_recurrence
from ssmlab.ops.projection import project
from ssmlab.ops.short_convolution import short_convolution


@dataclasses.dataclass(frozen=True)
class Mamba2(Mixer):
  """S[t] = exp(dt A) S[t-1] + dt B^T x,  y = norm((C S[t] + D x) * silu(z)) W_out;  x, B, C = silu(conv(u W)), dt = softplus(u W + bias).

  head_dim: channels of a head; must divide expand * width.  state: size of B and C.  groups: sets of B and C, each shared by neighbouring
    heads, and parts of the norm; must divide the number of heads.  expand: inner width over width.  conv_width: steps of the convolution.
  dt_lowest, dt_highest: limits of dt, None: no upper one.  bias: of the projections.  conv_bias: of the convolution.  eps: of the norm.
  """
  head_dim: int = 64
  state: int = 128
  groups: int = 1
  expand: int = 2
  conv_width: int = 4
  dt_lowest: float = 0.0
  dt_highest: float | None = None
  bias: bool = False
  conv_bias: bool = True
  eps: float = 1e-5

  def heads(self, width: int) -> int:
    """Number of heads.  Raises ValueError where the sizes do not divide."""
    heads, rest = divmod(self.expand * width, self.head_dim)
    if rest or not heads or heads % self.groups:
      raise ValueError(f'Mamba2: expand * width = {self.expand * width} must be a multiple of head_dim={self.head_dim} times groups={self.groups}')
    return heads

  def params(self, width: int):
    heads, inner, shared = self.heads(width), self.expand * width, 2 * self.groups * self.state
    start, taps = inits.torch_linear(), inits.uniform(-self.conv_width ** -0.5, self.conv_width ** -0.5)   # PyTorch's own
    sizes = dict(z=(inner, 'inner'), x=(inner, 'inner'), bc=(shared, None), dt=(heads, 'heads'))
    tree = {f'w_{name}': Param((width, size), ('width', axis), start) for name, (size, axis) in sizes.items()}
    tree |= dict(
        conv_x=Param((self.conv_width, inner), (None, 'inner'), taps), conv_bc=Param((self.conv_width, shared), (None, None), taps),
        dt_bias=vector(heads, 'heads', inits.log_uniform(1e-3, 0.1, after=inits.softplus_inverse), full_precision=True),
        a_log=vector(heads, 'heads', inits.log_of_uniform(1.0, 16.0), full_precision=True),
        d=vector(heads, 'heads', inits.constant(1.0)), norm_scale=vector(inner, 'inner', inits.constant(1.0)),
        w_out=Param((inner, width), ('inner', 'width'), inits.over_root_depth(inits.torch_linear())))
    if self.conv_bias:
      tree |= dict(b_conv_x=vector(inner, 'inner', taps), b_conv_bc=vector(shared, None, taps))
    if self.bias:
      tree |= {f'b_{name}': vector(size, axis) for name, (size, axis) in (sizes | dict(out=(width, None))).items()}
    return tree

  def init_state(self, width: int, batch: int, max_length: int):
    """The convolution's last `conv_width` inputs, one more than it reads again: the authors' decoding state."""
    tail = lambda channels: jnp.zeros((batch, self.conv_width, channels), jnp.float32)
    return dict(ssm=jnp.zeros((batch, self.heads(width), self.state, self.head_dim), jnp.float32),
                conv_x=tail(self.expand * width), conv_bc=tail(2 * self.groups * self.state))

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + 4 * self.expand * width * self.state

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    batch, time, width = x.shape
    heads, after = self.heads(width), {}
    affine = lambda y, name: project(y, params[f'w_{name}']) + (params[f'b_{name}'] if self.bias else 0)

    def convolved(name):
      y, tail = short_convolution(affine(x, name), params[f'conv_{name}'], params.get(f'b_conv_{name}'),
                                  None if state is None else state[f'conv_{name}'], segment_ids)
      after[f'conv_{name}'] = tail.astype(jnp.float32)
      return jax.nn.silu(y)
    v = convolved('x').reshape(batch, time, heads, self.head_dim)
    shared = convolved('bc').reshape(batch, time, 2, self.groups, self.state)
    b, c = shared[:, :, 0], shared[:, :, 1]
    dt = jax.nn.softplus(affine(x, 'dt').astype(params['dt_bias'].dtype) + params['dt_bias'])
    dt = jnp.clip(dt, self.dt_lowest, self.dt_highest)
    o, after['ssm'] = linear_recurrence(c, b, dt[..., None].astype(v.dtype) * v, -dt * jnp.exp(params['a_log']),
                                        initial=None if state is None else state['ssm'], segment_ids=segment_ids)
    gated = (o + params['d'][:, None] * v).reshape(batch, time, -1) * jax.nn.silu(affine(x, 'z'))
    y = rms_normalise(gated.reshape(batch, time, self.groups, -1), self.eps).reshape(batch, time, -1) * params['norm_scale']
    return affine(y, 'out'), None if state is None else after


TINY = Mamba2(head_dim=8, state=6, groups=2, dt_lowest=0.01, dt_highest=0.2, bias=True)
