"""Filters that are sums of exponentials: a state of constant size instead of a history, and no longest length."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.filters.base import LongFilter
from ssmlab.ops import diagonal_recurrence
from ssmlab.ops.causal_convolution import causal_convolution
from ssmlab.ops.discretisation import bilinear, zero_order_hold


class ExponentialSum(LongFilter):
  """h[t] = sum_s Re(R_s p_s^t) + direct [t = 0].  The kernel is log |p|, the angle of p, and R, float32 [modes, channels] each.

  The state is x_s[t] = p_s x_s[t-1] + u[t], whatever R: y[t] = sum_s Re(R_s x_s[t]) + direct u[t].
  """

  def __post_init__(self):
    if self._modes < 1:
      raise ValueError(f'{type(self).__name__}: {self._modes} modes, at least 1 are needed')

  def init_state(self, channels: int, batch: int, max_length: int, shared: tuple[int, ...] = ()):
    zeros = jnp.zeros((batch, self._modes, channels, *shared), jnp.float32)
    return dict(real=zeros, imaginary=zeros)

  def taps(self, params, length: int) -> jax.Array:
    return sum_of_exponentials(self.kernel(params, length), length)

  def flops(self, channels: int, length: int, shared: int = 1) -> float:
    """A mode writes 1, steps 8 and reads 4."""
    return 13 * self._modes * channels * shared

  def convolve(self, kernel, u: jax.Array, state=None, segment_ids: jax.Array | None = None):
    if state is None and self.by_fft:
      return causal_convolution(u, sum_of_exponentials(kernel, u.shape[1]), segment_ids=segment_ids), None
    over = lambda x: x.reshape(x.shape + (1,) * (u.ndim - 3))                # [..., channels, 1 ...]
    wide = u.astype(kernel['angle'].dtype)
    size, angle = jnp.exp(over(kernel['log_size'])), over(kernel['angle'])
    write = jnp.broadcast_to(wide[:, :, None], (*u.shape[:2], self._modes, *u.shape[2:]))
    h, last = diagonal_recurrence((size * jnp.cos(angle), size * jnp.sin(angle)), (write, jnp.zeros_like(write)),
                                  None if state is None else (state['real'], state['imaginary']), segment_ids)
    y = jnp.sum(over(kernel['real']) * h[0] - over(kernel['imaginary']) * h[1], axis=2)
    if 'direct' in kernel:
      y = y + over(kernel['direct']) * wide
    return y.astype(u.dtype), None if state is None else dict(real=last[0], imaginary=last[1])


def sum_of_exponentials(kernel, length: int) -> jax.Array:
  """The taps h [length, channels] of a kernel.  A mode at a time, so that no array of modes * length * channels is made."""
  time = jnp.arange(length, dtype=kernel['angle'].dtype)[:, None]

  def add(taps, mode):
    phase, size = time * mode['angle'], jnp.exp(time * mode['log_size'])
    return taps + size * (mode['real'] * jnp.cos(phase) - mode['imaginary'] * jnp.sin(phase)), None
  modes = {name: kernel[name] for name in ('angle', 'log_size', 'real', 'imaginary')}
  start = jnp.zeros((length, kernel['angle'].shape[1]), kernel['angle'].dtype)
  taps, _ = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), start, modes)
  return taps.at[0].add(kernel['direct']) if 'direct' in kernel else taps


@dataclasses.dataclass(frozen=True)
class ModalFilter(ExponentialSum):
  """h[t] = sum_s Re(R_s p_s^t) + direct [t = 0],  p = exp(-exp(log_rate) + i angle), of which |p| < 1 always.

  Laughing Hyena Distillery, arXiv 2310.18780, section 3: what Hyena's filters are distilled to; StripedHyena's are of this form from the
  start (togethercomputer/stripedhyena keeps p itself, which may leave the unit circle).  No start of training is published: here memories
  1 / rate are log-uniform in [slowest / 1000, slowest] and angles uniform in [0, pi).

  modes: complex p per channel.  direct: a coefficient of its own for the current input (h[0] is then free of the modes).
  slowest: longest memory at the start, in tokens.  rate: factor on the learning rate of all these.
  by_fft: without a state, convolve with the taps instead of holding the states of all tokens.
  """
  modes: int = 2
  direct: bool = True
  slowest: float = 1000.0
  rate: float = 1.0
  by_fft: bool = False

  @property
  def _modes(self) -> int:
    return self.modes

  def params(self, channels: int):
    shape, axes, hints = (self.modes, channels), ('state', 'inner'), dict(weight_decay=False, rate=self.rate, full_precision=True)
    log = math.log(self.slowest)
    residue = lambda: Param(shape, axes, inits.normal(self.modes ** -0.5), **hints)
    tree = dict(log_rate=Param(shape, axes, inits.uniform(-log, math.log(1000) - log), **hints),
                angle=Param(shape, axes, inits.uniform(0.0, math.pi), **hints), real=residue(), imaginary=residue())
    return tree | (dict(direct=vector(channels, 'inner', rate=self.rate, full_precision=True)) if self.direct else {})

  def kernel(self, params, time: int, state=None):
    return {name: params[name] for name in params if name != 'log_rate'} | dict(log_size=-jnp.exp(params['log_rate']))


@dataclasses.dataclass(frozen=True)
class DiagonalSSM(ExponentialSum):
  """h[t] = 2 Re sum_m C_m b_m a_m^t, the S4D-Lin system in H3's form: A = -exp(inv_a_real) + i a_imag, B and C complex.

  bilinear: a = (1 + dt A / 2) / (1 - dt A / 2), b = B dt / (1 - dt A / 2);  zero-order hold: a = exp(dt A), b = B (exp(dt A) - 1) / A.
  HazyResearch/safari, src/models/sequence/ssm/ss_kernel_diag.py; start: measure 'diag-lin'.

  state: size with the conjugate half, which is not stored; even.  dt_min, dt_max: range of the first time steps, uniform in the logarithm.
  hold: zero-order hold instead of the bilinear rule.  rate: factor on the learning rate of A, B and dt (the authors' is min(1e-3, global)).
  by_fft: without a state, convolve with the taps (as the authors do) instead of holding the states of all tokens.
  """
  state: int = 64
  dt_min: float = 1e-3
  dt_max: float = 0.1
  hold: bool = False
  rate: float = 1.0
  by_fft: bool = True

  def __post_init__(self):
    super().__post_init__()
    if self.state % 2:
      raise ValueError(f'DiagonalSSM: state={self.state} must be even')
    if not 0 < self.dt_min < self.dt_max:
      raise ValueError(f'DiagonalSSM: dt_min={self.dt_min} and dt_max={self.dt_max} must be 0 < dt_min < dt_max')

  @property
  def _modes(self) -> int:
    return self.state // 2

  def params(self, channels: int):
    shape, axes, slow = (self._modes, channels), ('state', 'inner'), dict(weight_decay=False, rate=self.rate, full_precision=True)
    both, names = (2, *shape), (None, *axes)                                 # real and imaginary part
    return dict(
        log_dt=vector(channels, 'inner', inits.log_uniform(self.dt_min, self.dt_max, after=jnp.log), rate=self.rate, full_precision=True),
        inv_a_real=Param(shape, axes, inits.constant(math.log(0.5)), **slow),
        a_imag=Param(shape, axes, lambda key, shape, layer: jnp.broadcast_to(jnp.pi * jnp.arange(shape[0])[:, None], shape), **slow),
        b=Param(both, names, lambda key, shape, layer: jnp.stack([jnp.ones(shape[1:]), jnp.zeros(shape[1:])]), **slow),
        c=Param(both, names, inits.normal(0.5 ** 0.5), full_precision=True))

  def discrete(self, params):
    """((Re a, Im a), (Re b, Im b)), [modes, channels] each."""
    rule = zero_order_hold if self.hold else bilinear
    a, factor = rule(-jnp.exp(params['inv_a_real']), params['a_imag'], jnp.exp(params['log_dt']))
    return a, _times(params['b'], factor)

  def kernel(self, params, time: int, state=None):
    a, b = self.discrete(params)
    real, imaginary = _times(params['c'], b)
    if self.hold:
      dt = jnp.exp(params['log_dt'])
      log_size, angle = -jnp.exp(params['inv_a_real']) * dt, params['a_imag'] * dt
    else:
      log_size, angle = 0.5 * jnp.log(a[0] * a[0] + a[1] * a[1]), jnp.arctan2(a[1], a[0])
    return dict(log_size=log_size, angle=angle, real=2 * real, imaginary=2 * imaginary)


def _times(x, y):
  return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]
