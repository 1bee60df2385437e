"""Mamba's selective state space.  Mamba: Linear-Time Sequence Modeling with Selective State Spaces, arXiv 2312.00752, sections 3.2 to 3.6;
author code state-spaces/mamba, mamba_ssm/modules/mamba_simple.py.

The paper writes the input's discretisation as a zero-order hold; the code, which we follow, takes dt B (Euler).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.mixers import Mixer
from ssmlab.ops.projection import project
from ssmlab.ops.selective_scan import selective_scan
from ssmlab.ops.short_convolution import short_convolution


@dataclasses.dataclass(frozen=True)
class Mamba1(Mixer):
  """h[t] = exp(dt A) h[t-1] + dt B u,  y = ((C h[t] + D u) * silu(z)) W_out;  u = silu(conv(x W_x)), z = x W_z; dt, B, C are maps of u.

  Every inner channel has its own state of size `state`.
  state: size of B and C.  rank: of the map to dt, None: a sixteenth of the width, rounded up.  expand: inner width over width.
  conv_width: steps of the convolution.  bias: of the outer projections.  conv_bias: of the convolution.
  """
  state: int = 16
  rank: int | None = None
  expand: int = 2
  conv_width: int = 4
  bias: bool = False
  conv_bias: bool = True

  def params(self, width: int):
    inner, rank = self.expand * width, self.rank or math.ceil(width / 16)
    start, taps = inits.torch_linear(), inits.uniform(-self.conv_width ** -0.5, self.conv_width ** -0.5)   # PyTorch's own
    tree = dict(
        w_x=Param((width, inner), ('width', 'inner'), start), w_z=Param((width, inner), ('width', 'inner'), start),
        conv=Param((self.conv_width, inner), (None, 'inner'), taps),
        w_rank=Param((inner, rank), ('inner', None), start), w_b=Param((inner, self.state), ('inner', 'state'), start),
        w_c=Param((inner, self.state), ('inner', 'state'), start),
        w_dt=Param((rank, inner), (None, 'inner'), inits.uniform(-rank ** -0.5, rank ** -0.5)),
        dt_bias=vector(inner, 'inner', inits.log_uniform(1e-3, 0.1, after=inits.softplus_inverse), full_precision=True),
        a_log=Param((inner, self.state), ('inner', 'state'), inits.by_layer(lambda _: jnp.log(jnp.arange(1, self.state + 1))),
                    weight_decay=False, full_precision=True),
        d=vector(inner, 'inner', inits.constant(1.0)), w_out=Param((inner, width), ('inner', 'width'), inits.over_root_depth(inits.torch_linear())))
    if self.conv_bias:
      tree |= dict(b_conv=vector(inner, 'inner', taps))
    if self.bias:
      tree |= dict(b_x=vector(inner, 'inner'), b_z=vector(inner, 'inner'), b_out=vector(width, None))
    return tree

  def init_state(self, width: int, batch: int, max_length: int):
    """The convolution's last `conv_width` inputs, one more than it reads again: the authors' decoding state."""
    inner = self.expand * width
    return dict(ssm=jnp.zeros((batch, inner, self.state), jnp.float32), conv=jnp.zeros((batch, self.conv_width, inner), jnp.float32))

  def flops(self, width: int, length: int) -> float:
    """The recurrence: dt A, dt u B, the step and the read, beside exp."""
    return super().flops(width, length) + 6 * self.expand * width * self.state

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    affine = lambda params, y, name: project(y, params[f'w_{name}']) + (params[f'b_{name}'] if self.bias else 0)
    u, dt, b, c, tail = _recomputed(_selection)(params, affine(params, x, 'x'), None if state is None else state['conv'], segment_ids)
    y, last = selective_scan(u, dt, -jnp.exp(params['a_log']), b, c, None if state is None else state['ssm'], segment_ids)

    def read(params, y, u, z):
      return affine(params, (y.astype(x.dtype) + params['d'] * u) * jax.nn.silu(z), 'out')
    y = _recomputed(read)(params, y, u, affine(params, x, 'z'))
    return y, None if state is None else dict(ssm=last, conv=tail.astype(jnp.float32))


# In the backward pass what stands between matrix products is computed again, not stored layer by layer: 4 layers of width 256, batch 4 x 512,
# no remat, 1122 -> 966 ms of CPU time a step (2 cores CPU, busy, November 2026).
_recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


def _selection(params, x, tail, segment_ids):
  """(u, dt, b, c, next tail): the scan's inputs, of which dt, b and c are maps of u."""
  u, tail = short_convolution(x, params['conv'], params.get('b_conv'), tail, segment_ids)
  u = jax.nn.silu(u)
  wide = params['a_log'].dtype
  b, c = (project(u, params[name]).astype(wide) for name in ('w_b', 'w_c'))
  dt = jax.nn.softplus(project(project(u, params['w_rank']), params['w_dt']).astype(wide) + params['dt_bias'])
  return u, dt, b, c, tail


TINY = Mamba1(state=4, rank=3, bias=True)
