"""The two ends of a language model: tokens to vectors and vectors to logits."""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param
from ssmlab.layers.norms import LayerNorm, RMSNorm

STARTS = ('normal', 'uniform', 'orthogonal')


def _start(name: str, size: float):
  if name not in STARTS:
    raise ValueError(f'start {name!r} is not one of {", ".join(STARTS)}')
  return {'normal': inits.normal(size), 'uniform': inits.uniform(-size, size), 'orthogonal': inits.orthogonal(size)}[name]


@dataclasses.dataclass(frozen=True)
class Embedding:
  """norm(scale * table[token]).

  start, size: the table's first values: 'normal' (standard deviation), 'uniform' (bound) or 'orthogonal' (gain).
  scale: factor on the vectors (Gemma: sqrt(width), rounded to bfloat16).  norm: a norm right after (RWKV's ln0) or None.
  """
  start: str = 'normal'
  size: float = 0.02
  scale: float = 1.0
  norm: LayerNorm | RMSNorm | None = None

  def params(self, vocab: int, width: int):
    tree = dict(table=Param((vocab, width), (None, 'width'), _start(self.start, self.size)))
    return tree if self.norm is None else tree | dict(norm=self.norm.params(width))

  def apply(self, params, tokens: jax.Array) -> jax.Array:
    """tokens int32 [batch, time] -> [batch, time, width]."""
    x = params['table'][tokens]
    if self.scale != 1.0:
      x = x * jnp.asarray(self.scale, x.dtype)
    return x if self.norm is None else self.norm.apply(params['norm'], x)


@dataclasses.dataclass(frozen=True)
class Head:
  """softcap * tanh(x W / softcap), or x W.

  tied: W is the embedding's table.  start, size: as for Embedding.
  softcap: bound on the logits (Gemma 2, arXiv 2408.00118, section 2), or None.
  """
  tied: bool = False
  start: str = 'normal'
  size: float = 0.02
  softcap: float | None = None

  def params(self, vocab: int, width: int):
    return {} if self.tied else dict(weight=Param((width, vocab), ('width', 'vocab'), _start(self.start, self.size)))

  def apply(self, params, table: jax.Array, x: jax.Array) -> jax.Array:
    """x [..., width] -> float32 logits [..., vocab]; `table` is the embedding's, used when tied."""
    weight = table.T if self.tied else params['weight']
    wide = jnp.promote_types(x.dtype, jnp.float32)
    logits = jnp.matmul(x, weight.astype(x.dtype), preferred_element_type=wide)
    return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)
