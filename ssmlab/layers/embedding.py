"""The two ends of a network: tokens to vectors, and vectors to logits or classes."""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.mesh import constrain
from ssmlab.core.params import Param, vector
from ssmlab.layers.channel import activation, drop
from ssmlab.layers.norms import LayerNorm, RMSNorm
from ssmlab.ops import segments
from ssmlab.ops.projection import project

STARTS = ('normal', 'uniform', 'orthogonal')


def _start(name: str, size: float):
  if name not in STARTS:
    raise ValueError(f'start {name!r} is not one of {", ".join(STARTS)}')
  return {'normal': inits.normal(size), 'uniform': inits.uniform(-size, size), 'orthogonal': inits.orthogonal(size)}[name]


@dataclasses.dataclass(frozen=True)
class Embedding:
  """norm(scale * table[token] + position_table[offset + position] + type_table[type]).

  start, size: the table's first values: 'normal' (standard deviation), 'uniform' (bound) or 'orthogonal' (gain).
  scale: factor on the vectors (Gemma: sqrt(width), rounded to bfloat16).  norm: a norm right after (RWKV's ln0) or None.
  positions: tokens that a document may have, where positions are learned (GPT-2, BERT); 0: no such table.
  offset: rows of that table before the first position (RoBERTa: 2, the padding's id and one more).
  types: kinds of segment (BERT: 2, the two sentences of a pair); 0: no such table.
  """
  start: str = 'normal'
  size: float = 0.02
  scale: float = 1.0
  norm: LayerNorm | RMSNorm | None = None
  positions: int = 0
  offset: int = 0
  types: int = 0

  def params(self, vocab: int, width: int):
    table = lambda rows: Param((rows, width), (None, 'width'), _start(self.start, self.size))
    tree = dict(table=table(vocab))
    if self.positions:
      tree['positions'] = table(self.offset + self.positions)
    if self.types:
      tree['types'] = table(self.types)
    return tree if self.norm is None else tree | dict(norm=self.norm.params(width))

  def apply(self, params, tokens: jax.Array, positions: jax.Array | None = None, types: jax.Array | None = None) -> jax.Array:
    """tokens int32 [batch, time] -> [batch, time, width].

    positions: int32 [batch, time], in each token's document; None: 0, 1, 2, ...  types: int32 [batch, time]; None: all 0.
    """
    x = look_up(params['table'], tokens)
    if self.scale != 1.0:
      x = x * jnp.asarray(self.scale, x.dtype)
    if self.positions:
      x = x + look_up(params['positions'], self.offset + (jnp.arange(tokens.shape[1])[None] if positions is None else positions))
    if self.types:
      x = x + (params['types'][0] if types is None else look_up(params['types'], types))
    return x if self.norm is None else self.norm.apply(params['norm'], x)


def look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
  """table[ids]: [ids, width], int32 [batch, time] -> [batch, time, width].

  On a mesh every shard of the table looks up its part of the width for all rows that its copy of the model reads, so that the layout by rows is an
  exchange of what was found; left to the compiler, every device gets all of it.
  """
  return constrain(table[constrain(ids, 'copy', 'time')], 'copy', 'time', 'width')


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


@dataclasses.dataclass(frozen=True)
class MaskedHead:
  """norm(act(x W + b)) table^T + bias: BERT's head for masked words, arXiv 1810.04805, and ModernBERT's, arXiv 2412.13663.

  norm, activation: of the transform.  dense_bias: b (not in ModernBERT).  tied: the last map is the embedding's table.
  start: standard deviation of the matrices' first values.
  """
  norm: LayerNorm = LayerNorm(1e-12)
  activation: str = 'gelu'
  dense_bias: bool = True
  tied: bool = True
  start: float = 0.02

  def __post_init__(self):
    activation(self.activation)

  def params(self, vocab: int, width: int):
    tree = dict(w_dense=Param((width, width), ('width', 'inner'), inits.normal(self.start)), norm=self.norm.params(width), bias=vector(vocab, 'vocab'))
    if self.dense_bias:
      tree['b_dense'] = vector(width, None)
    return tree if self.tied else tree | dict(weight=Param((width, vocab), ('width', 'vocab'), inits.normal(self.start)))

  def apply(self, params, table: jax.Array, x: jax.Array) -> jax.Array:
    """x [..., width] -> float32 logits [..., vocab]; `table` is the embedding's, used when tied."""
    params = jax.tree.map(lambda a: a.astype(x.dtype), params)
    h = project(x, params['w_dense'])
    h = self.norm.apply(params['norm'], activation(self.activation)(h + params['b_dense'] if self.dense_bias else h))
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.matmul(h, table.T.astype(x.dtype) if self.tied else params['weight'], preferred_element_type=wide) + params['bias'].astype(wide)


POOLINGS = ('first', 'mean')


@dataclasses.dataclass(frozen=True)
class Classifier:
  """norm(act(pool(x) W + b)) W_labels + b_labels, one for every document.  BERT: pooler and classifier; RoBERTa: its classification head.

  labels: classes, 1 for regression; 0: the pooled vector is what comes out (BERT's pooler alone).
  activation: 'tanh', or one of the channel mixers'.  pooling: 'first' (the [CLS]) or 'mean' over the document's tokens.
  bias: b (not in ModernBERT).  norm: before the last map (ModernBERT), or None.
  dropout: before the last map, where a key is given (RoBERTa drops before both).
  start: standard deviation of the matrices' first values.
  """
  labels: int
  activation: str = 'tanh'
  pooling: str = 'first'
  bias: bool = True
  norm: LayerNorm | None = None
  dropout: float = 0.1
  start: float = 0.02

  def __post_init__(self):
    activation(self.activation)
    if self.pooling not in POOLINGS:
      raise ValueError(f'Classifier: pooling={self.pooling!r} is not one of {", ".join(POOLINGS)}')
    if self.labels < 0:
      raise ValueError(f'Classifier: labels={self.labels} must be at least 0')

  def params(self, width: int):
    tree = dict(w_pool=Param((width, width), ('width', 'inner'), inits.normal(self.start)))
    tree |= dict(b_pool=vector(width, None)) if self.bias else {}
    tree |= dict(norm=self.norm.params(width)) if self.norm else {}
    return tree if not self.labels else tree | dict(
        weight=Param((width, self.labels), ('width', None), inits.normal(self.start)), bias=vector(self.labels, None))

  def pooled(self, x: jax.Array, segment_ids: jax.Array | None, documents: int) -> jax.Array:
    """x [batch, time, width] -> [batch, documents, width]: of the first `documents` documents of every row; zeros where there are fewer."""
    batch, time, _ = x.shape
    ids = jnp.ones((batch, time), jnp.int32) if segment_ids is None else segment_ids
    at, here = segments.starts(ids), segments.real(ids)
    number = jnp.cumsum(at, axis=1)                                                  # of the document in its row
    mine = (number[:, None] == jnp.arange(documents)[:, None]) & here[:, None]       # [batch, documents, time]
    if self.pooling == 'first':
      mine &= jnp.cumsum(mine, axis=-1) == 1
    weights = mine.astype(x.dtype) / jnp.maximum(jnp.sum(mine, axis=-1, keepdims=True), 1).astype(x.dtype)
    return jnp.einsum('bmt,btd->bmd', weights, x)

  def apply(self, params, x: jax.Array, segment_ids: jax.Array | None = None, documents: int = 1, key: jax.Array | None = None) -> jax.Array:
    """x [batch, time, width] -> float32 [batch, documents, labels], or the pooled vectors where labels is 0."""
    params = jax.tree.map(lambda a: a.astype(x.dtype), params)
    h = project(self.pooled(x, segment_ids, documents), params['w_pool'])
    h = activation(self.activation)(h + params['b_pool'] if self.bias else h)
    h = self.norm.apply(params['norm'], h) if self.norm else h
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if not self.labels:
      return h.astype(wide)
    return (project(drop(h, self.dropout, key), params['weight']) + params['bias']).astype(wide)
