"""H3.  Hungry Hungry Hippos: Towards Language Modeling with State Space Models, arXiv 2212.14052, section 3; author code
HazyResearch/safari, src/models/sequence/h3.py with ssm/ss_kernel_shift.py and ss_kernel_diag.py.

Start of training as in the authors' language models: every matrix N(0, 0.02^2), the output's too (their depth scaling goes by a name that
this layer's output does not have); the shift system's C as torch's convolution.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.filters import DiagonalSSM, ModalFilter
from ssmlab.mixers import Mixer
from ssmlab.ops.causal_convolution import causal_convolution
from ssmlab.ops.projection import project
from ssmlab.ops.short_convolution import short_convolution


@dataclasses.dataclass(frozen=True)
class H3(Mixer):
  """y = q * SSM_diag(SSM_shift(k) * v) W_out + b_out, each SSM with a skip;  with heads of e channels, k (x) v and a sum over k's index.

  The shift system is a filter of `state` taps, s[i] = sum_j B[j] C[i + j]; its state here are the inputs that those taps reach.
  state: size of both systems, the diagonal one with its conjugate half; even.
  head_dim: e; width must be a multiple of it.  The output's channel is b * heads + h, that of q, k and v is h * e + a: as in the authors'
    files.  dt_min, dt_max: range of the first time steps.  hold: zero-order hold instead of the bilinear rule.
  by_fft: without a state, convolve with the filters' taps (as the authors do) instead of stepping the diagonal system.
  modes: of the ModalFilter that stands for the diagonal system once that is distilled; 0: it is not.
  """
  state: int = 64
  head_dim: int = 1
  dt_min: float = 1e-3
  dt_max: float = 0.1
  hold: bool = False
  by_fft: bool = True
  modes: int = 0

  def __post_init__(self):
    if self.head_dim < 1:
      raise ValueError(f'H3: head_dim={self.head_dim} must be at least 1')
    self._filter                                             # checks the rest

  @property
  def _filter(self) -> DiagonalSSM | ModalFilter:
    if self.modes:
      return ModalFilter(self.modes, by_fft=self.by_fft)
    return DiagonalSSM(self.state, self.dt_min, self.dt_max, self.hold, by_fft=self.by_fft)

  def _heads(self, width: int) -> int:
    if width % self.head_dim:
      raise ValueError(f'H3: width {width} is not a multiple of head_dim {self.head_dim}')
    return width // self.head_dim

  def params(self, width: int):
    heads, start, taps = self._heads(width), inits.normal(0.02), (self.state, width)
    first = lambda key, shape, layer: jnp.zeros(shape).at[0].set(1.0)
    tree = dict(
        shift_b=Param(taps, ('state', 'inner'), first, weight_decay=False, full_precision=True),
        shift_c=Param(taps, ('state', 'inner'), inits.uniform(-self.state ** -0.5, self.state ** -0.5), full_precision=True),
        shift_skip=Param((width,), ('inner',), inits.normal(1.0)),
        filter=self._filter.params(heads), skip=Param((heads,), ('inner',), inits.normal(1.0)),
        w_out=Param((width, width), ('inner', 'width'), start), b_out=vector(width, None))
    for name in 'qkv':
      tree |= {f'w_{name}': Param((width, width), ('width', 'inner'), start), f'b_{name}': vector(width, 'inner')}
    return tree

  def init_state(self, width: int, batch: int, max_length: int):
    return dict(shift=jnp.zeros((batch, self.state, width), jnp.float32),
                long=self._filter.init_state(self._heads(width), batch, max_length, (self.head_dim, self.head_dim)))

  def flops(self, width: int, length: int) -> float:
    """Stepping; the FFTs of training are about as many (length 2048, state 64)."""
    return 8 * width * width + 2 * self.state * width + 6 * width * self.head_dim + self._filter.flops(self._heads(width), length, self.head_dim ** 2)

  def discrete(self, params):
    """Of the diagonal system: see DiagonalSSM."""
    return self._filter.discrete(params['filter'])

  def shift_taps(self, params) -> jax.Array:
    """s[i] = sum_j B[j] C[i + j], float32 [state, width]."""
    b, c = params['shift_b'], params['shift_c']
    lags = jnp.arange(self.state)
    return jnp.einsum('jd,ijd->id', b, jnp.concatenate([c, jnp.zeros_like(c)])[lags[:, None] + lags])

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    q, k, v = (project(x, params[f'w_{name}']) + params[f'b_{name}'] for name in 'qkv')
    k, tail = self._shifted(params, k, None if state is None else state['shift'], segment_ids)
    q, k, v = (y.reshape(*x.shape[:2], -1, self.head_dim) for y in (q, k, v))
    z = k[..., :, None] * v[..., None, :]                                      # [batch, time, heads, a, b]
    y, long = self._filter.apply(params['filter'], z, None if state is None else state['long'], segment_ids)
    y = jnp.einsum('btha,bthav->btvh', q, y + params['skip'][:, None, None] * z)
    y = project(y.reshape(x.shape), params['w_out']) + params['b_out']
    return y, None if state is None else dict(shift=tail.astype(jnp.float32), long=long)

  def _shifted(self, params, k, tail, segment_ids):
    taps = self.shift_taps(params)
    if tail is None and self.by_fft:
      y, after = causal_convolution(k, taps, segment_ids=segment_ids), None
    else:
      y, after = short_convolution(k, taps[::-1].astype(k.dtype), tail=tail, segment_ids=segment_ids)
    return y + params['shift_skip'] * k, after


TINY = H3(state=8, head_dim=2)
