"""Mamba-3, one input and one output per head (SISO).  Mamba-3: Improved Sequence Modeling using State Space Principles, arXiv 2603.15569,
sections on the exponential-trapezoidal rule, the data-dependent rotation and the biases of B and C; author code state-spaces/mamba,
mamba_ssm/modules/mamba3.py, with the recurrence as tests/ops/triton/test_mamba3_siso.py writes it.

Initial values, floors and the order of norm, bias and rotation are the author code's.  The rank-R variant (MIMO) is not here.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.norms import rms_normalise
from ssmlab.mixers import Mixer
from ssmlab.ops import diagonal_recurrence, linear_recurrence, segments
from ssmlab.ops.projection import project
from ssmlab.ops.rotary import turn
from ssmlab.ops.short_convolution import token_shift


@dataclasses.dataclass(frozen=True)
class Mamba3(Mixer):
  """S[t] = alpha S[t-1] + beta k[t-1]^T v[t-1] + gamma k[t]^T v[t],  y = ((q S + D v) * silu(z)) W_out,  v = u W_x,

  alpha = exp(dt A), beta = (1 - lam) dt alpha, gamma = lam dt: the trapezoidal rule, of which lam = 1 is Mamba-2's Euler step.
  A = -max(softplus(u W_a), lowest_rate), dt = softplus(u W_dt + dt_bias), lam = sigmoid(u W_lam).
  k = turn(norm(u W_b) + b_bias, phi), q = turn(norm(u W_c) + c_bias, phi), phi[t] = phi[t-1] + dt pi tanh(u W_angle).

  head_dim: channels of a head; must divide expand * width.  state: size of B and C, even.  groups: sets of B and C, each shared by
    neighbouring heads; must divide the number of heads.  expand: inner width over width.
  turned: share of B and C that is turned, 0.5 or 1 in the authors' code.  lowest_rate: least decay rate -A.
  out_norm: norm of each head's output before the gate.  eps: of all norms.
  """
  head_dim: int = 64
  state: int = 128
  groups: int = 1
  expand: int = 2
  turned: float = 0.5
  lowest_rate: float = 1e-4
  out_norm: bool = False
  eps: float = 1e-5

  def __post_init__(self):
    if self.state % 2 or not 0 < self.turned <= 1 or not self._pairs:
      raise ValueError(f'Mamba3: state={self.state} must be even and turned={self.turned} a share in (0, 1] of at least one pair of it')

  @property
  def _pairs(self) -> int:
    return int(self.state * self.turned) // 2

  def heads(self, width: int) -> int:
    """Number of heads.  Raises ValueError where the sizes do not divide."""
    heads, rest = divmod(self.expand * width, self.head_dim)
    if rest or not heads or heads % self.groups:
      raise ValueError(f'Mamba3: expand * width = {self.expand * width} must be a multiple of head_dim={self.head_dim} times groups={self.groups}')
    return heads

  def params(self, width: int):
    heads, inner, shared = self.heads(width), self.expand * width, self.groups * self.state
    sizes = dict(z=(inner, 'inner'), x=(inner, 'inner'), b=(shared, None), c=(shared, None), dt=(heads, 'heads'), a=(heads, 'heads'),
                 lam=(heads, 'heads'), angle=(self._pairs, None))
    tree = {f'w_{name}': Param((width, size), ('width', axis), inits.torch_linear()) for name, (size, axis) in sizes.items()}
    one = inits.constant(1.0)
    for name in 'bc':                            # biases and norms: the authors exempt dt_bias and D only, by name; we exempt all alike
      tree[f'{name}_bias'] = Param((heads, self.state), ('heads', 'state'), one, weight_decay=False)
      tree[f'{name}_norm'] = vector(self.state, None, one)
    tree |= dict(dt_bias=vector(heads, 'heads', inits.log_uniform(1e-3, 0.1, after=_bias), full_precision=True),
                 d=vector(heads, 'heads', one), w_out=Param((inner, width), ('inner', 'width'), inits.over_root_depth(inits.torch_linear())))
    return tree | (dict(norm_scale=vector(inner, 'inner', one)) if self.out_norm else {})

  def init_state(self, width: int, batch: int, max_length: int):
    """ssm: S.  angle: phi in [0, 2 pi).  k, v: of the last token, whose second half of a trapezium the next token writes."""
    heads = self.heads(width)
    zeros = lambda *sizes: jnp.zeros((batch, heads, *sizes), jnp.float32)
    return dict(ssm=zeros(self.state, self.head_dim), angle=zeros(self._pairs), k=zeros(self.state), v=zeros(self.head_dim))

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + 4 * self.expand * width * self.state

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    batch, time, width = x.shape
    heads, wide = self.heads(width), params['dt_bias'].dtype
    v = project(x, params['w_x']).reshape(batch, time, heads, self.head_dim)
    dt = jax.nn.softplus(project(x, params['w_dt']).astype(wide) + params['dt_bias'])
    log_decay = -dt * jnp.maximum(jax.nn.softplus(project(x, params['w_a']).astype(wide)), self.lowest_rate)
    lam = jax.nn.sigmoid(project(x, params['w_lam']).astype(wide))
    step = math.pi * jnp.tanh(project(x, params['w_angle']).astype(wide))
    phi, angle = diagonal_recurrence(1.0, dt[..., None] * step[:, :, None], None if state is None else state['angle'], segment_ids)
    k, q = (turn(self._projected(params, x, name), phi, interleaved=True) for name in 'bc')
    o, carried = _trapezoidal(q, k, v, log_decay, dt * lam, dt * (1 - lam), state, segment_ids)
    o = o + params['d'][:, None] * v
    if self.out_norm:
      o = rms_normalise(o, self.eps) * params['norm_scale'].reshape(heads, -1)
    y = project(o.reshape(batch, time, -1) * jax.nn.silu(project(x, params['w_z'])), params['w_out'])
    return y, None if state is None else carried | dict(angle=jnp.mod(angle, 2 * math.pi))

  def _projected(self, params, x, name: str):
    """B or C before the rotation, [batch, time, heads, state]."""
    y = project(x, params[f'w_{name}']).reshape(*x.shape[:2], self.groups, self.state)
    y = rms_normalise(y, self.eps) * params[f'{name}_norm']
    return jnp.repeat(y, len(params[f'{name}_bias']) // self.groups, axis=2) + params[f'{name}_bias']


def _trapezoidal(q, k, v, log_decay, gamma, late, state, segment_ids):
  """q[t] S[t] and what is carried, for S[t] = alpha (S[t-1] + late[t] k[t-1]^T v[t-1]) + gamma[t] k[t]^T v[t], alpha = exp(log_decay).

  As one recurrence with one write per token: R[t] = S[t] + late[t+1] k[t]^T v[t] has R[t] = alpha R[t-1] + (gamma[t] + late[t+1]) k[t]^T v[t],
  and q S[t] = alpha q R[t-1] + gamma[t] (q.k) v, read before the write.  (The authors' kernel reads R[t] and takes late[t+1] (q.k) v off
  again: the next token then cancels only up to rounding.)  The call's last token knows no next one and writes gamma alone; its k and v are
  carried, and the next call's first token adds its `late` to the state it is given.
  gamma, late, log_decay: [batch, time, heads].
  """
  flip = lambda array: None if array is None else jnp.flip(array, axis=1)
  following = flip(token_shift(flip(late), None, flip(segment_ids))[0])          # 0 where the next token is of another document, or none
  initial = None
  if state is not None:
    first = late[:, 0]
    if segment_ids is not None:
      is_real = segments.real(segment_ids)
      first = jnp.take_along_axis(late, jnp.argmax(is_real, axis=1)[:, None, None], axis=1)[:, 0] * is_real.any(axis=1)[:, None]
    initial = state['ssm'] + first[..., None, None] * state['k'][..., None] * state['v'][..., None, :]
  before, ssm = linear_recurrence(jnp.exp(log_decay)[..., None] * q, (gamma + following)[..., None] * k, v, log_decay,
                                  bonus=jnp.zeros(q.shape[2:]), initial=initial, segment_ids=segment_ids)
  o = before + ((gamma * jnp.sum(q * k, axis=-1))[..., None] * v).astype(v.dtype)
  if state is None:
    return o, None
  flat = lambda y: y.reshape(*y.shape[:-2], -1)
  last = lambda y, name: token_shift(flat(y), flat(state[name]), segment_ids)[1].reshape(state[name].shape).astype(jnp.float32)
  return o, dict(ssm=ssm, k=last(k, 'k'), v=last(v, 'v'))


def _bias(dt):
  """The bias whose softplus is dt; the authors' floor on dt is 1e-4."""
  return inits.softplus_inverse(jnp.maximum(dt, 1e-4))


TINY = Mamba3(head_dim=8, state=8, groups=2, out_norm=True)
