"""RWKV-4 time mixing.  RWKV: Reinventing RNNs for the Transformer Era, arXiv 2305.13048, eq. 11-13, 16 and 17; author code BlinkDL/RWKV-LM,
RWKV-v4neo/src/model.py (class RWKV_TimeMix).

The paper's appendix on initialisation and the code disagree on which matrices start at zero; we follow the code.  Its learning rates by
group are those of RWKV-v4neo/src/model.py, configure_optimizers.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Layer, Param, vector
from ssmlab.mixers import Mixer
from ssmlab.ops.max_stabilised import weighted_average
from ssmlab.ops.projection import project
from ssmlab.ops.short_convolution import token_shift


@dataclasses.dataclass(frozen=True)
class RWKV4(Mixer):
  """y = (sigmoid(r) * wkv) W_o,  wkv[t] = sum_i weight[t, i] v[i] / sum_i weight[t, i],  where weight[t, i] = e^(k[i] - (t-1-i) e^decay)
  for i < t and e^(k[t] + bonus) for i = t.  r, k, v are maps of mix * x[t] + (1 - mix) * x[t-1].

  inner: channels of the average; None: the width, as in every released model.
  """
  inner: int | None = None

  def params(self, width: int):
    inner = self.inner or width
    into = lambda init: Param((width, inner), ('width', 'inner'), init)
    mixes = dict(k=_mix(width, 1.0), v=_mix(width, 1.0, 0.3), r=_mix(width, 0.5))
    return {f'mix_{name}': vector(width, None, init) for name, init in mixes.items()} | dict(
        decay=vector(inner, 'inner', inits.by_layer(lambda layer: _decay(inner, layer)), rate=2.0, full_precision=True),
        bonus=vector(inner, 'inner', inits.by_layer(lambda _: math.log(0.3) + 0.5 * ((jnp.arange(inner) + 1) % 3 - 1)), rate=3.0, full_precision=True),
        w_k=into(inits.zeros()), w_v=into(inits.orthogonal(max(1.0, math.sqrt(inner / width)))), w_r=into(inits.zeros()),
        w_o=Param((inner, width), ('inner', 'width'), inits.zeros()))

  def init_state(self, width: int, batch: int, max_length: int):
    sums = {name: jnp.zeros((batch, self.inner or width), jnp.float32) for name in ('numerator', 'denominator', 'exponent')}
    return sums | dict(shift=jnp.zeros((batch, width), jnp.float32))

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + 12 * (self.inner or width)         # two sums, each decayed, written and read

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    def projected(params, x, previous, segment_ids):
      before, last = token_shift(x, previous, segment_ids)
      mixed = {name: x * params[f'mix_{name}'] + before * (1 - params[f'mix_{name}']) for name in 'kvr'}
      return *(project(mixed[name], params[f'w_{name}']) for name in 'kvr'), last
    k, v, r, last = _recomputed(projected)(params, x, None if state is None else state['shift'], segment_ids)
    initial = None if state is None else (state['numerator'], state['denominator'], state['exponent'])
    wkv, (numerator, denominator, exponent) = weighted_average(k, v, -jnp.exp(params['decay']), params['bonus'], initial, segment_ids)
    y = _recomputed(lambda w, r, wkv: project(jax.nn.sigmoid(r) * wkv, w))(params['w_o'], r, wkv)
    return y, None if state is None else dict(numerator=numerator, denominator=denominator, exponent=exponent, shift=last.astype(jnp.float32))


# In the backward pass what stands between matrix products is computed again, not stored: see layers.channel.
_recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


def _depth(layer: Layer):
  """0 at the bottom, 1 at the top; 0 for a single layer, where the authors' code divides by zero."""
  return layer.index / max(layer.count - 1, 1)


def _mix(width: int, power: float, extra: float = 0.0):
  """(channel / width)^(power * (1 - layer / layers)) + extra * depth."""
  return inits.by_layer(lambda layer: (jnp.arange(width) / width) ** (power * (1 - layer.index / layer.count)) + extra * _depth(layer))


def _decay(inner: int, layer: Layer):
  return -5 + 8 * (jnp.arange(inner) / max(inner - 1, 1)) ** (0.7 + 1.3 * _depth(layer))


TINY = RWKV4(inner=24)
