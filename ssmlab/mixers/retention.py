"""Multi-scale retention.  Retentive Network, arXiv 2307.08621, eq. 5-8; author code microsoft/torchscale,
torchscale/component/multiscale_retention.py and torchscale/architecture/retnet.py.

Where paper and code differ we follow the code: decays 1 - 2^(-5-h) (paper's experiments: 1 - exp(linspace)), a rotation with
theta^(-j/(pairs-1)) instead of theta^(-2j/size), an RMS norm without weights in place of the paper's GroupNorm, k scaled by key size^-1/2.
Of the code's normalisations we keep the one by sqrt(sum of decays), exact in every form; the clip of the score sums exists in its
parallel form only and cancels in the norm that follows, up to that norm's eps.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.core import inits
from ssmlab.core.params import Param
from ssmlab.layers.norms import rms_normalise
from ssmlab.mixers import Mixer
from ssmlab.ops import linear_recurrence, rotary, segments
from ssmlab.ops.projection import project


@dataclasses.dataclass(frozen=True)
class Retention(Mixer):
  """S[n] = gamma S[n-1] + k[n]^T v[n],  y = (silu(x W_g) * norm(q[n] S[n])) W_o,  gamma_h = 1 - 2^(-5-h).

  heads; head_dim: key size of a head; value_dim: value size of a head (None: twice head_dim, the paper's choice).
  theta: base of the rotation.  eps: of the norm over each head's output.
  """
  heads: int
  head_dim: int
  value_dim: int | None = None
  theta: float = 10000.0
  eps: float = 1e-6

  def __post_init__(self):
    if self.head_dim % 2:
      raise ValueError(f'Retention: head_dim={self.head_dim} must be even, its features are rotated in pairs')

  @property
  def _value(self) -> int:
    return self.value_dim or 2 * self.head_dim

  def params(self, width: int):
    keys, values = self.heads * self.head_dim, self.heads * self._value
    start, out = inits.xavier_uniform(2 ** -2.5), inits.xavier_uniform(2 ** -1)
    return dict(w_q=Param((width, keys), ('width', 'inner'), start), w_k=Param((width, keys), ('width', 'inner'), start),
                w_v=Param((width, values), ('width', 'inner'), start), w_g=Param((width, values), ('width', 'inner'), start),
                w_o=Param((values, width), ('inner', 'width'), out))

  def init_state(self, width: int, batch: int, max_length: int):
    return dict(retained=jnp.zeros((batch, self.heads, self.head_dim, self._value), jnp.float32),
                position=jnp.zeros((batch,), jnp.int32))

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + 4 * self.heads * self.head_dim * self._value

  @property
  def log_decay(self) -> np.ndarray:
    """log gamma, float64 [heads]."""
    return np.log1p(-2.0 ** (-5.0 - np.arange(self.heads)))

  def scale(self, positions: jax.Array) -> jax.Array:
    """sum of gamma^i over i = 0 .. position, by which the code divides under a square root.  float32 [*positions, heads]."""
    log_decay = jnp.asarray(self.log_decay, jnp.float32)
    return jnp.expm1((positions[..., None] + 1) * log_decay) / jnp.expm1(log_decay)

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    batch, time, _ = x.shape
    split = lambda y, size: y.reshape(batch, time, self.heads, size)
    q, k = split(project(x, params['w_q']), self.head_dim), split(project(x, params['w_k']), self.head_dim) * self.head_dim ** -0.5
    v, gate = split(project(x, params['w_v']), self._value), jax.nn.silu(project(x, params['w_g']))
    positions, position = segments.positions(segment_ids, time, jnp.zeros((batch,), jnp.int32) if state is None else state['position'])
    radians = self.theta ** -np.linspace(0, 1, self.head_dim // 2)                 # the code's: 1 included
    q, k = (rotary.rotate(y, positions, radians.astype(np.float32), interleaved=True) for y in (q, k))
    log_decay = jnp.broadcast_to(jnp.asarray(self.log_decay, jnp.promote_types(x.dtype, jnp.float32)), (batch, time, self.heads))
    o, retained = linear_recurrence(q, k, v, log_decay, initial=None if state is None else state['retained'], segment_ids=segment_ids)
    o = o * jax.lax.rsqrt(self.scale(positions))[..., None].astype(o.dtype)
    y = project(rms_normalise(o, self.eps).reshape(batch, time, -1) * gate, params['w_o'])
    return y, None if state is None else dict(retained=retained, position=position)


TINY = Retention(heads=2, head_dim=8, value_dim=12)
