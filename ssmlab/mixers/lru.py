"""The linear recurrent unit (LRU).  Resurrecting Recurrent Neural Networks for Long Sequences, arXiv 2303.06349, section 3 and appendix A
(the authors' code); the block around it, GELU and GLU, appendix D.1, as written out in NicolasZucchet/minimal-LRU, lru/model.py.

The authors' dropout is left out.  For a causal model the unidirectional form of appendix D.1.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.glu import GLU
from ssmlab.mixers import Mixer
from ssmlab.ops import diagonal_recurrence
from ssmlab.ops.projection import project

RATE = 0.25      # of Lambda, gamma and B: the factor of three of the six tasks in table 9 (0.1 to 0.5)
OUTPUT = GLU()
_LEAST = 1e-7    # a uniform draw of exactly 0 would have an infinite logarithm


@dataclasses.dataclass(frozen=True)
class LRU(Mixer):
  """h[t] = Lambda h[t-1] + gamma * (B x[t]),  y = glu(gelu(Re(C h[t]) + D x[t])),  Lambda = exp(-exp(nu) + i exp(theta)).

  One complex state for all channels.  `ring` holds nu, theta and log gamma, which starts as log sqrt(1 - |Lambda|^2) and is then learned.
  state: N, complex numbers in the state.
  r_min, r_max: Lambda starts uniformly in the ring between these radii.  max_phase: its phase starts uniformly in [0, max_phase].
  """
  state: int
  r_min: float = 0.0
  r_max: float = 1.0
  max_phase: float = 6.28

  def __post_init__(self):
    if not 0 <= self.r_min < self.r_max <= 1:
      raise ValueError(f'LRU: r_min={self.r_min} and r_max={self.r_max} must be 0 <= r_min < r_max <= 1')

  def params(self, width: int):
    return dict(
        ring=Param((3, self.state), (None, 'inner'), self._ring, weight_decay=False, rate=RATE, full_precision=True),
        w_b=Param((2, width, self.state), (None, 'width', 'inner'), inits.normal((2 * width) ** -0.5), weight_decay=False, rate=RATE),
        w_c=Param((2, self.state, width), (None, 'inner', 'width'), inits.normal(self.state ** -0.5)),
        d=vector(width, None, inits.normal(1.0)), **OUTPUT.params(width))

  def _ring(self, key, shape, layer):
    """nu, theta and log gamma: one draw, since gamma follows from nu."""
    radius, phase = jax.random.uniform(key, (2, shape[-1]), jnp.float32, _LEAST, 1.0)
    nu = jnp.log(-0.5 * jnp.log(radius * (self.r_max ** 2 - self.r_min ** 2) + self.r_min ** 2))
    return jnp.stack([nu, jnp.log(self.max_phase * phase), 0.5 * jnp.log(-jnp.expm1(-2 * jnp.exp(nu)))])

  def init_state(self, width: int, batch: int, max_length: int):
    zeros = jnp.zeros((batch, self.state), jnp.float32)
    return dict(real=zeros, imaginary=zeros)

  def flops(self, width: int, length: int) -> float:
    """Beside the projections 10 for every complex state: gamma 2, step 8."""
    return super().flops(width, length) + 4 * self.state

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    nu, theta, log_gamma = params['ring']
    size, phase, gamma = jnp.exp(-jnp.exp(nu)), jnp.exp(theta), jnp.exp(log_gamma)
    write = tuple(gamma * (x @ b).astype(gamma.dtype) for b in params['w_b'])
    h, last = diagonal_recurrence((size * jnp.cos(phase), size * jnp.sin(phase)), write,
                                  None if state is None else (state['real'], state['imaginary']), segment_ids)
    real, imaginary = (part.astype(x.dtype) for part in h)
    y = OUTPUT.apply(params, project(real, params['w_c'][0]) - project(imaginary, params['w_c'][1]) + params['d'] * x)
    return y, None if state is None else dict(real=last[0], imaginary=last[1])


TINY = LRU(state=8, r_min=0.3, r_max=0.9, max_phase=3.0)
