"""mLSTM, the matrix memory of xLSTM 7B.  xLSTM, arXiv 2405.04517, eq. 19-27; xLSTM 7B, arXiv 2503.13427, section 3 (the layer here);
author code NX-AI/xlstm, xlstm/xlstm_large/model.py, and for the start NX-AI/xlstm-jax, models/xlstm_parallel/blocks/mlstm/layer_v1.py.

The first paper's layer stands inside an up-projection, with a convolution and a learnable skip; the second one's, this one, stands alone
before an MLP and caps its gates.  The authors' kernels take the stabiliser for a constant in the backward pass; the result depends on it
through eps alone, and here that derivative too is exact, as in their plain PyTorch form.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.norms import normalise
from ssmlab.mixers import Mixer
from ssmlab.ops import linear_recurrence
from ssmlab.ops.projection import project
from ssmlab.ops.stabilised_gates import stabilised_gates

FORGET_BIAS = (3.0, 6.0)


@dataclasses.dataclass(frozen=True)
class MLSTM(Mixer):
  """C[t] = sigmoid(f) C[t-1] + exp(i) k (x) v,  n[t] = sigmoid(f) n[t-1] + exp(i) k,  y = (sigmoid(x W_g) * norm(C^T q / max(|n.q|, 1))) W_o.

  Gates i and f are one number per head, cap * tanh((x W + b) / cap).  C and n are kept divided by e^m, m the running maximum of the
  exponents: so the denominator is max(|n.q|, e^-m) + eps.
  heads; head_dim: key size of a head.  value_dim: value size of a head (None: twice head_dim, as in the 7B model).
  soft_cap: bound on both gates' pre-activations.  input_bias: start of the input gate's bias; that of the forget gate's climbs from 3 to 6
  over the heads.  eps: added to the denominator.  norm_eps: of the norm over each head's output.
  """
  heads: int
  head_dim: int
  value_dim: int | None = None
  soft_cap: float = 15.0
  input_bias: float = -10.0
  eps: float = 1e-6
  norm_eps: float = 1e-6

  @property
  def _value(self) -> int:
    return self.value_dim or 2 * self.head_dim

  def params(self, width: int):
    keys, values = self.heads * self.head_dim, self.heads * self._value
    into = lambda size: Param((width, size), ('width', 'inner'), inits.normal(math.sqrt(2 / (5 * width))))
    gate = lambda: Param((width, self.heads), ('width', 'heads'), inits.zeros())
    return dict(
        w_q=into(keys), w_k=into(keys), w_v=into(values),
        w_i=gate(), b_i=vector(self.heads, 'heads', inits.constant(self.input_bias), full_precision=True),
        w_f=gate(), b_f=vector(self.heads, 'heads', inits.by_layer(lambda _: jnp.linspace(*FORGET_BIAS, self.heads)), full_precision=True),
        w_g=Param((width, values), ('width', 'inner'), inits.zeros()),
        norm_scale=vector(values, 'inner', inits.constant(1.0)),
        w_o=Param((values, width), ('inner', 'width'), _wang(width)))

  def init_state(self, width: int, batch: int, max_length: int):
    """memory: C, and n as one more column.  stabiliser: m, 0 before the first token as in the authors' code."""
    return dict(memory=jnp.zeros((batch, self.heads, self.head_dim, self._value + 1), jnp.float32),
                stabiliser=jnp.zeros((batch, self.heads), jnp.float32))

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + 4 * self.heads * self.head_dim * (self._value + 1)

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    batch, time, _ = x.shape
    q, k, v = (project(x, params[f'w_{name}']).reshape(batch, time, self.heads, -1) for name in 'qkv')
    log_decay, log_write, m, stabiliser = stabilised_gates(
        jax.nn.log_sigmoid(self._gate(params, x, 'f')), self._gate(params, x, 'i'), None if state is None else state['stabiliser'], segment_ids)
    k = (k * jnp.exp(log_write)[..., None]).astype(v.dtype)
    # The norm's gradient is orthogonal to what it norms, so that a read near zero, whose cotangent is large, leaves sums of large terms that
    # cancel.  A loop over tokens rounds them more than products of scores do, in the worst draws ten times: short inputs too train in chunks.
    o, memory = linear_recurrence(q * self.head_dim ** -0.5, k, jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1), log_decay,
                                  initial=None if state is None else state['memory'], segment_ids=segment_ids,
                                  implementation='chunked' if state is None else 'auto')
    h = normalise(o[..., :-1] / self._denominator(o[..., -1].astype(m.dtype), m)[..., None], self.norm_eps)
    h = h.astype(x.dtype).reshape(batch, time, -1) * params['norm_scale']
    y = project(jax.nn.sigmoid(project(x, params['w_g'])) * h, params['w_o'])
    return y, None if state is None else dict(memory=memory, stabiliser=stabiliser)

  def _gate(self, params, x, name: str):
    """A gate's capped pre-activation, [batch, time, heads], in float32: it is exponentiated."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    raw = jnp.matmul(x, params[f'w_{name}'], preferred_element_type=wide) + params[f'b_{name}']
    return self.soft_cap * jnp.tanh(raw / self.soft_cap)

  def _denominator(self, read, m):
    """max(|n.q|, e^-m) + eps, the derivative by m being that of eps e^m: numerator and maximum, both divided by e^m, take it for a constant."""
    constant = jax.lax.stop_gradient(m)
    return jnp.maximum(jnp.abs(read), jnp.exp(-constant)) + self.eps * jnp.exp(m - constant)


def _wang(size: int):
  """N(0, (2 / blocks)^2 / size), GPT-NeoX's start of projections back to the residual stream."""
  return lambda key, shape, layer: 2 / (layer.count * math.sqrt(size)) * jax.random.normal(key, shape, jnp.float32)


TINY = MLSTM(heads=2, head_dim=6, value_dim=4, input_bias=0.0, norm_eps=1e-3)
