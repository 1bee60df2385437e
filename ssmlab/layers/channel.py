"""Channel mixers: what stands beside a sequence mixer in a block and works on one token (and, for RWKV, the token before it).

The contract is the mixer's (ssmlab.mixers): params(width), init_state(width, batch), apply(params, x, state, *, segment_ids) -> (y, state).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.ops.projection import project
from ssmlab.ops.short_convolution import token_shift


def gelu(x: jax.Array) -> jax.Array:
  """x (1 + erf(x / sqrt(2))) / 2, as PyTorch computes it, in float32.  Gaussian Error Linear Units, arXiv 1606.08415, section 2.

  jax.nn.gelu goes by erfc, which XLA computes twice, for small and for large arguments, to take one of the two.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5 ** 0.5))).astype(x.dtype)


ACTIVATIONS = {
    'silu': jax.nn.silu,
    'gelu': gelu,
    'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
    'relu': jax.nn.relu,
    'relu_squared': lambda x: jnp.square(jax.nn.relu(x)),
    'tanh': jnp.tanh,
}


def drop(x: jax.Array, share: float, key: jax.Array | None) -> jax.Array:
  """Dropout: zero with probability `share`, else x / (1 - share); x itself without a key.  arXiv 1207.0580."""
  if key is None or not share:
    return x
  return jnp.where(jax.random.bernoulli(key, 1 - share, x.shape), x / (1 - share), jnp.zeros((), x.dtype))


class ChannelMixer:
  """Base of the channel mixers; without state unless a subclass says otherwise.

  dropout: above 0 where `apply` takes a `key`, without which nothing is dropped.
  """

  dropout = 0.0

  def init_state(self, width: int, batch: int):
    return {}

  def flops(self, width: int) -> int:
    """Forward FLOPs per token, a multiply-add being two."""
    return 2 * sum(p.size for p in jax.tree.leaves(self.params(width), is_leaf=lambda x: isinstance(x, Param)) if len(p.shape) > 1)


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
  """The function of that name; ValueError naming the allowed ones."""
  if name not in ACTIVATIONS:
    raise ValueError(f'activation {name!r} is not one of {", ".join(ACTIVATIONS)}')
  return ACTIVATIONS[name]


class _Activated(ChannelMixer):
  """A channel mixer with an activation: a name, or a part with parameters (and, if it looks back, a state) of its own."""

  def _check_activation(self):
    if isinstance(self.activation, str):
      activation(self.activation)
    elif not isinstance(getattr(self.activation, 'inputs', None), int):
      raise ValueError(f'activation {self.activation!r} is neither a name ({", ".join(ACTIVATIONS)}) nor a SeriesActivation')

  @property
  def _inputs(self) -> int:
    """How many values per inner channel the activation reads."""
    return 1 if isinstance(self.activation, str) else self.activation.inputs

  def _activation_params(self):
    return {} if isinstance(self.activation, str) else dict(activation=self.activation.params(self.hidden))

  def _activate(self, params, x: jax.Array, state, segment_ids):
    if isinstance(self.activation, str):
      return jax.checkpoint(activation(self.activation))(x), state         # its gradient from x again: less to write and read than what is in between
    return self.activation.apply(params['activation'], x, state, segment_ids=segment_ids)

  def init_state(self, width: int, batch: int):
    return {} if isinstance(self.activation, str) else self.activation.init_state(self.hidden, batch)


@dataclasses.dataclass(frozen=True)
class GatedMLP(_Activated):
  """(act(x W_gate) * (x W_up)) W_down.  GLU Variants Improve Transformer, arXiv 2002.05202, eq. 6.

  hidden: width inside.  activation: 'silu' (Llama), 'gelu_tanh' (Gemma), 'gelu', 'relu', 'relu_squared', or a SeriesActivation (PanGu-pi).
  bias: a bias on each of the three maps; output_bias: on the last one, whatever `bias` says (MosaicBERT).
  uniform: PyTorch's uniform start instead of the normal (RetNet).  start, depth_scaled: of the normal, as for Attention.
  dropout: share of the inner channels that is dropped where a key is given.
  """
  hidden: int
  activation: Any = 'silu'
  bias: bool = False
  output_bias: bool = False
  uniform: bool = False
  start: float | None = None
  depth_scaled: bool = True
  dropout: float = 0.0

  def __post_init__(self):
    self._check_activation()

  def params(self, width: int):
    into, out = inits.into_and_out(self.hidden, self.start, self.depth_scaled)
    if self.uniform:
      into = out = inits.torch_linear()
    gates = self._inputs * self.hidden
    tree = dict(w_gate=Param((width, gates), ('width', 'hidden'), into),
                w_up=Param((width, self.hidden), ('width', 'hidden'), into),
                w_down=Param((self.hidden, width), ('hidden', 'width'), out))
    if self.bias:
      tree |= dict(b_gate=vector(gates, 'hidden'), b_up=vector(self.hidden, 'hidden'))
    return tree | self._activation_params() | (dict(b_down=vector(width, None)) if self.bias or self.output_bias else {})

  def apply(self, params, x, state=None, *, segment_ids=None, key=None):
    gate, up = project(x, params['w_gate']), project(x, params['w_up'])
    if self.bias:
      gate, up = gate + params['b_gate'], up + params['b_up']
    gate, state = self._activate(params, gate, state, segment_ids)
    y = project(drop(gate * up, self.dropout, key), params['w_down'])
    return y + params['b_down'] if self.bias or self.output_bias else y, state


@dataclasses.dataclass(frozen=True)
class MLP(_Activated):
  """act(x W_up + b_up) W_down + b_down.  Attention Is All You Need, arXiv 1706.03762, eq. 2; with GELU in GPT-2 and BERT.

  hidden: width inside.  activation: 'gelu' (BERT), 'gelu_tanh' (GPT-2), 'relu', 'relu_squared', 'silu', or a SeriesActivation.
  bias: on both maps.
  start, depth_scaled: as for Attention.  dropout: share of the inner channels that is dropped where a key is given.
  """
  hidden: int
  activation: Any = 'gelu'
  bias: bool = True
  start: float | None = None
  depth_scaled: bool = True
  dropout: float = 0.0

  def __post_init__(self):
    self._check_activation()

  def params(self, width: int):
    into, out = inits.into_and_out(self.hidden, self.start, self.depth_scaled)
    inner = self._inputs * self.hidden
    tree = dict(w_up=Param((width, inner), ('width', 'hidden'), into), w_down=Param((self.hidden, width), ('hidden', 'width'), out))
    return tree | self._activation_params() | (dict(b_up=vector(inner, 'hidden'), b_down=vector(width, None)) if self.bias else {})

  def apply(self, params, x, state=None, *, segment_ids=None, key=None):
    up = project(x, params['w_up'])
    up, state = self._activate(params, up + params['b_up'] if self.bias else up, state, segment_ids)
    y = project(drop(up, self.dropout, key), params['w_down'])
    return y + params['b_down'] if self.bias else y, state


@dataclasses.dataclass(frozen=True)
class RWKVChannelMix(ChannelMixer):
  """sigmoid(x_r W_receptance) * (relu(x_k W_key)^2 W_value),  x_n = mix_n * x + (1 - mix_n) * x_previous.  RWKV-4 and 5.

  RWKV, arXiv 2305.13048, eq. 14, 15 and 18; BlinkDL/RWKV-LM, RWKV-v4neo/src/model.py and RWKV-v5/src/model.py (class RWKV_ChannelMix).
  hidden: width inside, 4 * width in RWKV-4, 3.5 * width rounded down to a multiple of 32 in RWKV-5.
  key_start: gain of W_key's orthogonal start, sqrt(hidden / width) in RWKV-4's code and 1 in RWKV-5's.
  """
  hidden: int
  key_start: float = 1.0

  def params(self, width: int):
    mix = inits.by_layer(lambda layer: (jnp.arange(width) / width) ** (1 - layer.index / layer.count))
    return dict(mix_k=vector(width, None, mix), mix_r=vector(width, None, mix)) | _receptance_params(width, self.hidden, self.key_start)

  def init_state(self, width: int, batch: int):
    return dict(shift=jnp.zeros((batch, width), jnp.float32))

  def apply(self, params, x, state=None, *, segment_ids=None):
    def projected(params, x, previous, segment_ids):
      before, last = token_shift(x, previous, segment_ids)
      x_k, x_r = (x * params[name] + before * (1 - params[name]) for name in ('mix_k', 'mix_r'))
      return *_key_and_receptance(params, x_k, x_r), last
    *inside, last = _recomputed(projected)(params, x, None if state is None else state['shift'], segment_ids)
    return _receptance_gated(params, *inside), None if state is None else dict(shift=last.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class RWKV6ChannelMix(ChannelMixer):
  """sigmoid(x_r W_receptance) * (relu(x_k W_key)^2 W_value),  x_n = x + (x_previous - x) * x_n.  RWKV-6.

  RWKVChannelMix with coefficients of the previous token, stored as such: 1 - mix is not the same number after rounding.
  Eagle and Finch, arXiv 2404.05892, section 4; BlinkDL/RWKV-LM, RWKV-v5/src/model.py (class RWKV_CMix_x060).
  hidden: width inside, 3.5 * width rounded down to a multiple of 32 in the published models.
  """
  hidden: int

  def params(self, width: int):
    mix = inits.by_layer(lambda layer: 1 - (jnp.arange(width) / width) ** ((1 - layer.index / layer.count) ** 3))
    return dict(x_k=vector(width, None, mix), x_r=vector(width, None, mix)) | _receptance_params(width, self.hidden, 1.0)

  def init_state(self, width: int, batch: int):
    return dict(shift=jnp.zeros((batch, width), jnp.float32))

  def apply(self, params, x, state=None, *, segment_ids=None):
    def projected(params, x, previous, segment_ids):
      before, last = token_shift(x, previous, segment_ids)
      x_k, x_r = (x + (before - x) * params[name] for name in ('x_k', 'x_r'))
      return *_key_and_receptance(params, x_k, x_r), last
    *inside, last = _recomputed(projected)(params, x, None if state is None else state['shift'], segment_ids)
    return _receptance_gated(params, *inside), None if state is None else dict(shift=last.astype(jnp.float32))


def _receptance_params(width: int, hidden: int, key_start: float):
  return dict(w_key=Param((width, hidden), ('width', 'hidden'), inits.orthogonal(key_start)),
              w_value=Param((hidden, width), ('hidden', 'width'), inits.zeros()),
              w_receptance=Param((width, width), ('width', None), inits.zeros()))


# In the backward pass what stands between matrix products is computed again, not stored: stacking it layer by layer costs more.  RWKV-4 of
# 4 layers of width 256, batch 4 x 512, no remat: 1062 -> 964 ms of CPU time a step with this and the mixer's (2 cores CPU, busy, November 2026).
_recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


def _key_and_receptance(params, x_k, x_r):
  return project(x_k, params['w_key']), project(x_r, params['w_receptance'])


def _receptance_gated(params, key, receptance):
  value = _recomputed(lambda w, key: project(jnp.square(jax.nn.relu(key)), w))(params['w_value'], key)
  return _recomputed(lambda receptance, value: jax.nn.sigmoid(receptance) * value)(receptance, value)


@dataclasses.dataclass(frozen=True)
class RWKV7ChannelMix(ChannelMixer):
  """relu((x + (x_previous - x) * x_k) W_key)^2 W_value.  RWKV-7 "Goose", arXiv 2503.14456, section 4 (feed-forward network).

  hidden: width inside, 4 * width in the published models.  Start: BlinkDL/RWKV-LM, RWKV-v7/train_temp/src/model.py.
  """
  hidden: int

  def params(self, width: int):
    channel = jnp.arange(width) / width
    mix = lambda layer: 1 - channel ** ((1 - layer.index / layer.count) ** 4)
    return dict(x_k=vector(width, None, inits.by_layer(mix)),
                w_key=Param((width, self.hidden), ('width', 'hidden'), inits.orthogonal(1.0)),
                w_value=Param((self.hidden, width), ('hidden', 'width'), inits.zeros()))

  def init_state(self, width: int, batch: int):
    return dict(shift=jnp.zeros((batch, width), jnp.float32))

  def apply(self, params, x, state=None, *, segment_ids=None):
    before, last = token_shift(x, None if state is None else state['shift'], segment_ids)
    mixed = x + (before - x) * params['x_k']
    y = project(jnp.square(jax.nn.relu(project(mixed, params['w_key']))), params['w_value'])
    return y, None if state is None else dict(shift=last.astype(jnp.float32))
