"""Series informed activation.  PanGu-pi: Enhancing Language Model Architectures via Nonlinearity Compensation, arXiv 2312.17276, section 4.2.

The authors published no code.  Where the paper is silent: one scale and one bias per channel, SiLU in every term, the first term the plain
activation at the start and the others nearly silent (scales N(0, 0.02^2); terms that start alike would stay alike), on the gate of a gated MLP.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param
from ssmlab.layers.channel import activation
from ssmlab.ops.short_convolution import delayed

SHARES = ('channel', 'layer', 'none')


@dataclasses.dataclass(frozen=True)
class SeriesActivation:
  """phi(x) = sum_i sigma_i(a_i x + b_i) (eq. 7), in place of a channel mixer's `activation`.

  terms: names of sigma_1, sigma_2, .. ; the paper's model has two.  One term with a = 1 and b = 0 is the plain activation.
  scales: whose a_i and b_i are: 'channel' (one each), 'layer' (one for all channels), 'none' (1 and 0, not learned).
  projections: eq. 9 instead, sum_i sigma_i(x W_i): the map before the activation has a matrix for every term.
  neighbours: of how many earlier tokens the activations are added, by a causal depthwise convolution whose weights start as
    N(0, 0.02^2): the paper's "global information" of VanillaNet (arXiv 2305.12972), which looks to both sides and so could not generate.
  """
  terms: tuple[str, ...] = ('silu', 'silu')
  scales: str = 'channel'
  projections: bool = False
  neighbours: int = 0

  def __post_init__(self):
    if not self.terms:
      raise ValueError('SeriesActivation: terms is empty; it needs at least one activation')
    for name in self.terms:
      activation(name)
    if self.scales not in SHARES:
      raise ValueError(f'SeriesActivation: scales={self.scales!r} is not one of {", ".join(SHARES)}')
    if self.neighbours < 0:
      raise ValueError(f'SeriesActivation: neighbours={self.neighbours} must be at least 0')

  @property
  def inputs(self) -> int:
    """How many values per channel it reads."""
    return len(self.terms) if self.projections else 1

  def params(self, channels: int):
    n, tree = len(self.terms), {}
    if self.scales != 'none':
      size, axis = (channels, 'hidden') if self.scales == 'channel' else (1, None)
      tree = {name: Param((n, size), (None, axis), start, weight_decay=False, full_precision=True)
              for name, start in (('a', inits.constant(1.0) if self.projections else _one_and_near_zero), ('b', inits.zeros()))}
    if self.neighbours:
      tree['neighbours'] = Param((self.neighbours, channels), (None, 'hidden'), inits.normal(0.02), weight_decay=False)
    return tree

  def init_state(self, channels: int, batch: int):
    return dict(tail=jnp.zeros((batch, self.neighbours, channels), jnp.float32)) if self.neighbours else {}

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    """x: [batch, time, inputs * channels], one term's after the other -> ([batch, time, channels], state)."""
    parts, y = jnp.split(x, self.inputs, axis=-1), 0
    for i, name in enumerate(self.terms):
      part = parts[i % self.inputs]
      if self.scales != 'none':
        part = part * params['a'][i].astype(x.dtype) + params['b'][i].astype(x.dtype)
      y = y + activation(name)(part)
    if not self.neighbours:
      return y, state
    earlier, tail = delayed(y, self.neighbours, None if state is None else state['tail'], segment_ids)
    y = y + sum(value * weight.astype(x.dtype) for value, weight in zip(earlier, params['neighbours']))
    return y, None if state is None else dict(tail=tail.astype(jnp.float32))


def _one_and_near_zero(key, shape, layer):
  return (0.02 * jax.random.normal(key, shape, jnp.float32)).at[0].set(1.0)
