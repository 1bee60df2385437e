"""Hyena's filter: a small network with sine activations, of the position, times an exponential window.

Hyena Hierarchy, arXiv 2302.10866, section 3.3; author code HazyResearch/safari, src/models/sequence/hyena.py (HyenaFilter).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.filters.base import TappedFilter
from ssmlab.layers.filters.explicit import ExplicitFilter


@dataclasses.dataclass(frozen=True)
class ImplicitFilter(TappedFilter):
  """h[i, c] = (sin network of z_i)_c * (exp(-t_i |delta_c|) + shift),  t_i = i / (l_max - 1).

  z_i = (t_i, cos(f_k w_i), -sin(f_k w_i)), w_i = 2 pi i / l_max, f from 1e-4 to bands - 1.  Everything is relative to l_max: a shorter
  input uses the first rows.  The network is computed in float32; all its sine layers share one vector of frequencies.

  l_max: longest document.  emb_dim: size of z, odd, 1 + 2 * bands.  width: of the network (the authors' filter_order).
  inner_layers: between the first and the last, which is without bias.  frequency: first value of the frequencies (w).
  modulate: whether there is a window; target: its value at the share slow (of l_max, first channel) to fast (last channel); shift.
  normalised: every time step is divided by the sum of |h| over channels (the authors', off in every published model).
  rate, position_rate, window_rate: factors on the learning rate of the network, of z and of delta; 0 makes z or delta a constant.
  form: how single tokens are read, 'direct', 'epoched' or 'tiled' (ops.causal_convolution.stream); the state's layout depends on it.
    A token through 4 layers of width 256 takes a CPU 1.5 ms epoched, 3.0 direct, 2.6 tiled at 512 tokens, and 6, 9 and 21 at 2048.
    One convolution alone, its state updated in place, is fastest tiled: 15 us a token of 64 channels at 16384 taps, epoched 142, direct 339.
    Through a network of several layers every token copies the layers' histories, tiled two of them, and that is what then counts.
  """
  l_max: int
  emb_dim: int = 33
  width: int = 64
  inner_layers: int = 2
  frequency: float = 14.0
  modulate: bool = True
  target: float = 1e-2
  fast: float = 0.3
  slow: float = 1.5
  shift: float = 0.0
  normalised: bool = False
  rate: float = 1.0
  position_rate: float = 1.0
  window_rate: float = 0.0
  form: str = 'epoched'

  def __post_init__(self):
    super().__post_init__()
    if self.emb_dim < 3 or self.emb_dim % 2 == 0:
      raise ValueError(f'ImplicitFilter: emb_dim={self.emb_dim} must be odd and at least 3')
    if not 0 < self.target < 1 or self.fast <= 0 or self.slow <= 0:
      raise ValueError(f'ImplicitFilter: target={self.target} must be in (0, 1), fast={self.fast} and slow={self.slow} above 0')

  def params(self, channels: int):
    hints = dict(weight_decay=False, full_precision=True)
    network = hints | dict(rate=self.rate)
    tree = dict(z=Param((1, self.l_max, self.emb_dim), (None, None, None), self._positions, **hints, rate=self.position_rate),
                frequency=Param((self.width,), (None,), inits.constant(self.frequency), **network))
    for index in range(self.inner_layers + 1):
      size = self.width if index else self.emb_dim
      tree |= {f'w_{index}': Param((size, self.width), (None, None), inits.normal(0.02), **network),
               f'b_{index}': vector(self.width, None, rate=self.rate, full_precision=True)}
    tree |= dict(w_out=Param((self.width, channels), (None, 'inner'), inits.normal(0.02), **network))
    ends = -math.log(self.target) / self.slow, -math.log(self.target) / self.fast
    start = lambda key, shape, layer: -jnp.linspace(*ends, shape[0])          # negative in the authors' files; its size counts
    return tree | dict(delta=vector(channels, 'inner', start, rate=self.window_rate, full_precision=True))

  def _positions(self, key, shape, layer) -> jax.Array:
    """z, float32 [1, l_max, emb_dim]."""
    index, bands = jnp.arange(self.l_max, dtype=jnp.float32)[:, None], (self.emb_dim - 1) // 2
    phase = jnp.linspace(1e-4, bands - 1, bands) * (2 * math.pi * index / self.l_max)      # the lowest is practically constant
    return jnp.concatenate([index / max(self.l_max - 1, 1), jnp.cos(phase), -jnp.sin(phase)], axis=1)[None]

  def network(self, params, length: int) -> jax.Array:
    """The filter before its window, [length, channels]."""
    x = _kept(params['z'], self.position_rate)[0, :length]
    for index in range(self.inner_layers + 1):
      x = jnp.sin(params['frequency'] * (x @ params[f'w_{index}'] + params[f'b_{index}']))
    return x @ params['w_out']

  def taps(self, params, length: int) -> jax.Array:
    h = self.network(params, self.within(length))
    if self.modulate:
      t = jnp.arange(length, dtype=h.dtype)[:, None] / max(self.l_max - 1, 1)
      h = h * (jnp.exp(-t * jnp.abs(_kept(params['delta'], self.window_rate))) + self.shift)
    return h / jnp.sum(jnp.abs(h), axis=-1, keepdims=True) if self.normalised else h

  def for_generation(self, length: int | None):
    """The taps as parameters, `length` of them at most: a token then costs no network."""
    taps = self.l_max if length is None else min(length, self.l_max)
    return ExplicitFilter(taps, threshold=0.0, form=self.form), lambda params: dict(k=self.taps(params, taps))

  def generation_flops(self, channels: int) -> float:
    return 2 * (self.width * (self.emb_dim + self.inner_layers * self.width) + self.width * channels)


def _kept(value: jax.Array, rate: float) -> jax.Array:
  """A constant has no gradient, nor a part in the norm by which gradients are clipped."""
  return value if rate else jax.lax.stop_gradient(value)
