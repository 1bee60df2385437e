"""S4D, the diagonal state space.  On the Parameterization and Initialization of Diagonal State Space Models, arXiv 2206.11893, sections 3
and 4; author code state-spaces/s4, models/s4/s4d.py (S4D-Inv: src/models/hippo, eq. 8 of the paper).

Without a state the convolution that the recurrence unrolls to, K[l] = 2 Re sum_n C[n] (exp(dt A[n]) - 1) / A[n] exp(dt A[n] l), by FFT, as the
authors train.  Their dropout is left out.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.filters.modal import sum_of_exponentials
from ssmlab.layers.glu import GLU
from ssmlab.mixers import Mixer
from ssmlab.ops import diagonal_recurrence
from ssmlab.ops.causal_convolution import causal_convolution
from ssmlab.ops.discretisation import zero_order_hold

RATE = 0.1        # of A and dt: 0.001 where the rest has 0.01 (example.py)
OUTPUT = GLU(torch=True)


@dataclasses.dataclass(frozen=True)
class S4D(Mixer):
  """h[t] = exp(dt A) h[t-1] + (exp(dt A) - 1) / A x[t],  y = glu(gelu(2 Re(C h[t]) + D x[t])), every channel on its own up to the glu.

  A = -exp(log_a_real) + i a_imag.
  state: N, size of a channel's state with the conjugate half, which is not stored; even.
  dt_min, dt_max: range of the first time steps, uniform in the logarithm.
  inverse: A starts as S4D-Inv, imaginary parts (N / pi) (N / (2n + 1) - 1), instead of S4D-Lin, pi n.
  """
  state: int = 64
  dt_min: float = 1e-3
  dt_max: float = 0.1
  inverse: bool = False

  def __post_init__(self):
    if self.state < 2 or self.state % 2:
      raise ValueError(f'S4D: state={self.state} must be even and at least 2')
    if not 0 < self.dt_min < self.dt_max:
      raise ValueError(f'S4D: dt_min={self.dt_min} and dt_max={self.dt_max} must be 0 < dt_min < dt_max')

  def params(self, width: int):
    shape, axes, slow = (width, self.state // 2), ('inner', 'state'), dict(weight_decay=False, rate=RATE, full_precision=True)
    return dict(
        log_dt=vector(width, 'inner', inits.log_uniform(self.dt_min, self.dt_max, after=jnp.log), rate=RATE, full_precision=True),
        log_a_real=Param(shape, axes, inits.constant(math.log(0.5)), **slow),
        a_imag=Param(shape, axes, inits.by_layer(lambda _: self._frequencies()), **slow),
        c=Param((2, *shape), (None, *axes), inits.normal(0.5 ** 0.5)),                     # real and imaginary part
        d=vector(width, 'inner', inits.normal(1.0)), **OUTPUT.params(width))

  def _frequencies(self) -> jax.Array:
    n = jnp.arange(self.state // 2)
    return self.state / jnp.pi * (self.state / (2 * n + 1) - 1) if self.inverse else jnp.pi * n

  def init_state(self, width: int, batch: int, max_length: int):
    zeros = jnp.zeros((batch, width, self.state // 2), jnp.float32)
    return dict(real=zeros, imaginary=zeros)

  def flops(self, width: int, length: int) -> float:
    """Stepping: beside the projections 14 for every complex state, write 2, step 8, read 4."""
    return super().flops(width, length) + 3 * width * self.state

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    decay, factor, kernel = self._system(params)
    if state is None:
      y, after = causal_convolution(x, sum_of_exponentials(kernel, x.shape[1]), segment_ids=segment_ids), None
    else:
      u = x.astype(decay[0].dtype)[..., None]
      h, last = diagonal_recurrence(decay, (u * factor[0], u * factor[1]), (state['real'], state['imaginary']), segment_ids)
      c = params['c'].astype(decay[0].dtype)
      y = 2 * (jnp.einsum('btdn,dn->btd', h[0], c[0]) - jnp.einsum('btdn,dn->btd', h[1], c[1]))
      after = dict(real=last[0], imaginary=last[1])
    return OUTPUT.apply(params, y.astype(x.dtype) + params['d'] * x), after

  def _system(self, params):
    """(exp(dt A), (exp(dt A) - 1) / A, pairs of [width, state / 2]; K as layers.filters has it, [state / 2, width])."""
    dt, c = jnp.exp(params['log_dt'])[:, None], params['c'].astype(params['log_dt'].dtype)
    real, imaginary = -jnp.exp(params['log_a_real']), params['a_imag']
    decay, factor = zero_order_hold(real, imaginary, dt)
    kernel = dict(log_size=real * dt, angle=imaginary * dt, real=2 * (c[0] * factor[0] - c[1] * factor[1]), imaginary=2 * (c[0] * factor[1] + c[1] * factor[0]))
    return decay, factor, jax.tree.map(jnp.transpose, kernel)


TINY = S4D(state=6)
