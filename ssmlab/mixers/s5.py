"""S5, one diagonal state space for all channels.  Simplified State Space Layers for Sequence Modeling, arXiv 2208.04933, sections 3 and 4;
author code lindermanlab/S5, s5/ssm.py, s5/ssm_init.py and s5/layers.py.

After the state space stands the authors' default activation, 'half_glu1' of run_train.py: a * sigmoid(a W + b) with a = gelu(y).  Their
dropout is left out, and the backward direction of their classifiers.  `step_rescale` is a shift of log_step.  The first C is their
'trunc_standard_normal' (which has variance 1 / P whatever its name says) or, in their language runs, 'complex_normal'.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.glu import GLU
from ssmlab.mixers import Mixer
from ssmlab.ops import diagonal_recurrence
from ssmlab.ops.discretisation import bilinear, zero_order_hold
from ssmlab.ops.projection import project

RATE = 0.25      # of Lambda, dt and B: 1 / lr_factor of the authors' text task (run_lra_imdb.sh; 1 to 5 elsewhere)
OUTPUT = GLU(half=True)
# Variance 1 / inputs, cut off at two deviations; a leading axis of real and imaginary part counts for nothing.
_TRUNCATED = jax.nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal', batch_axis=(0,))


@dataclasses.dataclass(frozen=True)
class S5(Mixer):
  """h[t] = exp(Lambda dt) h[t-1] + (exp(Lambda dt) - 1) / Lambda B x[t],  y = glu(gelu(2 Re(C h[t]) + D x[t])).

  Starts from HiPPO-LegS: Lambda are the eigenvalues of its normal part, B and C random real matrices in the basis of its eigenvectors.
  state: P, size of the state.  blocks: J, the first state matrix is J equal blocks of HiPPO's, each of size P / J.
  conjugate: one of every conjugate pair of eigenvalues is stored, P / 2 in all; otherwise all P, and y has Re(C h) without the 2.
  bilinear: Tustin's discretisation instead of the zero-order hold above.
  complex_c: C starts as independent normal numbers of variance 1/2 per part, as in the authors' language runs.
  least_decay: Lambda's real part stays at or below its negative ('clip_eigs' of the authors); None leaves it free, as their classifiers do.
  dt_min, dt_max: range of the first time steps, one per state, uniform in the logarithm.
  """
  state: int = 256
  blocks: int = 8
  conjugate: bool = True
  bilinear: bool = False
  complex_c: bool = False
  least_decay: float | None = 1e-4
  dt_min: float = 1e-3
  dt_max: float = 0.1

  def __post_init__(self):
    if self.blocks < 1 or self.state % (self.blocks * (2 if self.conjugate else 1)):
      raise ValueError(f'S5: state={self.state} is not a multiple of {"2 * " * self.conjugate}blocks={self.blocks}')
    if not 0 < self.dt_min < self.dt_max:
      raise ValueError(f'S5: dt_min={self.dt_min} and dt_max={self.dt_max} must be 0 < dt_min < dt_max')
    if self.least_decay is not None and self.least_decay <= 0:
      raise ValueError(f'S5: least_decay={self.least_decay} must be above 0 or None')

  @property
  def _stored(self) -> int:
    return self.state // 2 if self.conjugate else self.state

  def _basis(self) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies [kept] and eigenvectors [block, kept] of one block, kept: the lower half of the spectrum, or all of it."""
    frequencies, vectors = _hippo_normal(self.state // self.blocks)
    kept = self._stored // self.blocks
    return frequencies[:kept], vectors[:, :kept]

  def params(self, width: int):
    slow = dict(rate=RATE, full_precision=True)
    return dict(
        lambda_real=vector(self._stored, 'inner', inits.constant(-0.5), **slow),
        lambda_imag=vector(self._stored, 'inner', inits.by_layer(lambda _: np.tile(self._basis()[0], self.blocks)), **slow),
        log_step=vector(self._stored, 'inner', inits.log_uniform(self.dt_min, self.dt_max, after=jnp.log), **slow),
        w_b=Param((2, width, self._stored), (None, 'width', 'inner'), self._start_b, weight_decay=False, rate=RATE),
        w_c=Param((2, self._stored, width), (None, 'inner', 'width'), inits.normal(0.5 ** 0.5) if self.complex_c else self._start_c),
        d=vector(width, None, inits.normal(1.0)), **OUTPUT.params(width))

  def _start_b(self, key, shape, layer):
    """V^H B for a real B [P, width], real and imaginary part, transposed."""
    vectors = self._basis()[1]
    b = _TRUNCATED(key, (1, self.state, shape[1])).reshape(self.blocks, -1, shape[1])
    turn = lambda part: jnp.einsum('jnd,nk->djk', b, part.astype(np.float32)).reshape(shape[1:])
    return jnp.stack([turn(vectors.real), turn(-vectors.imag)])

  def _start_c(self, key, shape, layer):
    """C V for a complex C [width, P], real and imaginary part, transposed."""
    vectors = self._basis()[1]
    real, imaginary = _TRUNCATED(key, (2, self.state, shape[2])).reshape(2, self.blocks, -1, shape[2])
    turn = lambda c, part: jnp.einsum('jnd,nk->jkd', c, part.astype(np.float32)).reshape(shape[1:])
    return jnp.stack([turn(real, vectors.real) - turn(imaginary, vectors.imag), turn(real, vectors.imag) + turn(imaginary, vectors.real)])

  def init_state(self, width: int, batch: int, max_length: int):
    zeros = jnp.zeros((batch, self._stored), jnp.float32)
    return dict(real=zeros, imaginary=zeros)

  def flops(self, width: int, length: int) -> float:
    """Beside the projections 14 for every complex state: factor of the input 6, step 8."""
    return super().flops(width, length) + 14 * self._stored

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    wide, real = params['log_step'].dtype, params['lambda_real']
    real = real if self.least_decay is None else jnp.minimum(real, -self.least_decay)
    decay, factor = (bilinear if self.bilinear else zero_order_hold)(real, params['lambda_imag'], jnp.exp(params['log_step']))
    u, v = ((x @ b).astype(wide) for b in params['w_b'])
    h, last = diagonal_recurrence(decay, (factor[0] * u - factor[1] * v, factor[0] * v + factor[1] * u),
                                  None if state is None else (state['real'], state['imaginary']), segment_ids)
    h_real, h_imag = (part.astype(x.dtype) for part in h)
    y = project(h_real, params['w_c'][0]) - project(h_imag, params['w_c'][1])
    y = OUTPUT.apply(params, (2 * y if self.conjugate else y) + params['d'] * x)
    return y, None if state is None else dict(real=last[0], imaginary=last[1])


def _hippo_normal(size: int) -> tuple[np.ndarray, np.ndarray]:
  """Imaginary parts of the eigenvalues, ascending, and eigenvectors of HiPPO-LegS' normal part A + p p^T; the real parts are all -1/2.

  A[n, k] = -sqrt(2n + 1) sqrt(2k + 1) for n > k, -(n + 1) for n = k, 0 above;  p[n] = sqrt(n + 1/2).  On the host: sizes are static.
  """
  n = np.arange(size)
  root = np.sqrt(2 * n + 1.0)
  matrix = -np.tril(np.outer(root, root)) + np.diag(n) + np.outer(root, root) / 2
  return np.linalg.eigh(-1j * (matrix - np.diag(np.diag(matrix))))


TINY = S5(state=16, blocks=2, least_decay=0.45)
