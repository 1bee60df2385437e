"""What the delta-rule mixers share: convolved queries, keys and values, the strength of a write, the memory, the norm over what it gives."""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.norms import rms_normalise
from ssmlab.ops.delta_rule import delta_rule
from ssmlab.ops.projection import project
from ssmlab.ops.short_convolution import short_convolution

START = inits.xavier_uniform(2 ** -2.5)     # of every matrix in the authors' layers


@dataclasses.dataclass(frozen=True)
class DeltaMemory:
  """norm(S^T q) * scale  with q, k, v = silu(conv(x W)), q and k of unit length, beta = sigmoid(x W_b), S by ops.delta_rule.

  heads: of q and k.  value_heads: of v and of the memory, a multiple of heads; value head h uses key head h // (value_heads / heads).
  key, value: sizes of a head.  conv_width: steps of the convolutions, which have no bias and PyTorch's start, uniform within
  1 / sqrt(conv_width).  allow_neg_eigval: beta in (0, 2).  eps: of the norm over each head's output.
  """
  heads: int
  value_heads: int
  key: int
  value: int
  conv_width: int
  allow_neg_eigval: bool
  eps: float

  def __post_init__(self):
    if self.conv_width < 1:
      raise ValueError(f'conv_width={self.conv_width} must be at least 1')
    if self.value_heads % self.heads:
      raise ValueError(f'value_heads={self.value_heads} is not a multiple of heads={self.heads}')

  @property
  def inner(self) -> int:
    """Channels of the output."""
    return self.value_heads * self.value

  @property
  def _sizes(self) -> dict[str, int]:
    return dict(q=self.heads * self.key, k=self.heads * self.key, v=self.inner)

  def params(self, width: int):
    bound = self.conv_width ** -0.5
    kernel = lambda size: Param((self.conv_width, size), (None, 'inner'), inits.uniform(-bound, bound))
    return ({f'w_{name}': Param((width, size), ('width', 'inner'), START) for name, size in self._sizes.items()} |
            {f'conv_{name}': kernel(size) for name, size in self._sizes.items()} |
            dict(w_b=Param((width, self.value_heads), ('width', 'heads'), START), norm_scale=vector(self.value, None, inits.constant(1.0))))

  def init_state(self, batch: int):
    return dict(memory=jnp.zeros((batch, self.value_heads, self.key, self.value), jnp.float32),
                conv={name: jnp.zeros((batch, self.conv_width - 1, size), jnp.float32) for name, size in self._sizes.items()})

  def flops(self) -> int:
    """Per token, of the recurrence as it is defined."""
    return 8 * self.value_heads * self.key * self.value

  def apply(self, params, x: jax.Array, log_decay: jax.Array | None = None, state=None, segment_ids: jax.Array | None = None):
    """x [batch, time, width] -> ([batch, time, inner], state after or None).  log_decay: as for ops.delta_rule."""
    qkv, tails = [], {}
    for name, heads in dict(q=self.heads, k=self.heads, v=self.value_heads).items():
      y, tail = short_convolution(project(x, params[f'w_{name}']), params[f'conv_{name}'], None, None if state is None else state['conv'][name], segment_ids)
      qkv.append(jax.nn.silu(y).reshape(*x.shape[:2], heads, -1))
      tails[name] = tail.astype(jnp.float32)
    beta = jax.nn.sigmoid(project(x, params['w_b'])) * (2.0 if self.allow_neg_eigval else 1.0)
    o, memory = delta_rule(*qkv, beta, log_decay, initial=None if state is None else state['memory'], segment_ids=segment_ids)
    o = (rms_normalise(o, self.eps) * params['norm_scale']).reshape(*x.shape[:2], -1)
    return o, None if state is None else dict(memory=memory, conv=tails)
