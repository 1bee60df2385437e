"""Linear attention, the plain baseline.  Transformers are RNNs, arXiv 2006.16236, eq. 7 and 18-20; author code idiap/fast-transformers,
fast_transformers/attention/causal_linear_attention.py and attention_layer.py (biases on all maps, PyTorch's start).
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.mixers import Mixer
from ssmlab.ops import linear_recurrence
from ssmlab.ops.projection import project


@dataclasses.dataclass(frozen=True)
class LinearAttention(Mixer):
  """S[t] = S[t-1] + phi(k) (x) v,  z[t] = z[t-1] + phi(k),  y = (S^T phi(q) / (z . phi(q) + eps)) W_o,  phi(x) = elu(x) + 1.

  heads; head_dim: key size of a head.  value_dim: value size of a head (None: head_dim).  bias: on q, k, v and output.
  eps: added to the normaliser.
  """
  heads: int
  head_dim: int
  value_dim: int | None = None
  bias: bool = True
  eps: float = 1e-6

  @property
  def _value(self) -> int:
    return self.value_dim or self.head_dim

  def params(self, width: int):
    keys, values, start = self.heads * self.head_dim, self.heads * self._value, inits.torch_linear()
    into = lambda size: Param((width, size), ('width', 'inner'), start)
    tree = dict(w_q=into(keys), w_k=into(keys), w_v=into(values), w_o=Param((values, width), ('inner', 'width'), start))
    if self.bias:
      within = lambda inputs: inits.uniform(-inputs ** -0.5, inputs ** -0.5)
      tree |= dict(b_q=vector(keys, 'inner', within(width)), b_k=vector(keys, 'inner', within(width)),
                   b_v=vector(values, 'inner', within(width)), b_o=vector(width, None, within(values)))
    return tree

  def init_state(self, width: int, batch: int, max_length: int):
    """S with z as its last column."""
    return dict(memory=jnp.zeros((batch, self.heads, self.head_dim, self._value + 1), jnp.float32))

  def flops(self, width: int, length: int) -> float:
    return super().flops(width, length) + 4 * self.heads * self.head_dim * (self._value + 1)

  def _map(self, params, x, name: str):
    y = project(x, params[f'w_{name}'])
    return y + params[f'b_{name}'] if self.bias else y

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    batch, time, _ = x.shape
    wide = jnp.promote_types(x.dtype, jnp.float32)           # sums over the whole past and their quotient: bfloat16 loses both
    q, k, v = (self._map(params, x, name).reshape(batch, time, self.heads, -1).astype(wide) for name in 'qkv')
    q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
    v = jnp.concatenate([v, jnp.ones((*v.shape[:3], 1), wide)], axis=-1)
    o, memory = linear_recurrence(q, k, v, initial=None if state is None else state['memory'], segment_ids=segment_ids)
    o = (o[..., :-1] / (o[..., -1:] + self.eps)).reshape(batch, time, -1).astype(x.dtype)
    return self._map(params, o, 'o'), None if state is None else dict(memory=memory)


TINY = LinearAttention(heads=2, head_dim=4, value_dim=6)
