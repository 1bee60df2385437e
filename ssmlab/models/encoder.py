"""The encoder: every token sees its whole document.  BERT, RoBERTa, MosaicBERT and ModernBERT are configurations of it.

BERT, arXiv 1810.04805; RoBERTa, arXiv 1907.11692; MosaicBERT, arXiv 2312.17482; ModernBERT, arXiv 2412.13663: models.presets.bert.
Post-norm (the first three):  x = norm(x + mixer(x)), then x = norm(x + channel(x)).
Pre-norm (ModernBERT):        x += mixer(norm(x)), then x += channel(norm(x)), and a norm on top.
How blocks are stacked and scanned: models.stack.  Rows may hold several documents (`segment_ids`), which is unpadding with shapes that the
compiler knows: packed and padded documents give the same outputs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssmlab.core import dtypes
from ssmlab.core.mesh import constrain
from ssmlab.layers.channel import ChannelMixer, drop
from ssmlab.layers.embedding import Classifier, Embedding, MaskedHead
from ssmlab.layers.norms import LayerNorm, RMSNorm
from ssmlab.mixers import Mixer
from ssmlab.models.stack import Block, Stack
from ssmlab.ops import segments


def padded_vocab(vocab: int, multiple: int = 64) -> int:
  """The next multiple: matrix units are filled, and the extra ids are classes that no text has."""
  return -(-vocab // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Encoder(Stack):
  """tokens -> logits of masked words, or of classes.

  vocab, width: sizes.  pattern, depth, channel: as for LM; mixers read both ways: Attention(causal=False), or Bidirectional around any other.
  norm: of the blocks.  post_norm: the norm stands after the sum, not before the mixer.
  first_norm: False leaves out the very first norm of a pre-norm network, whose embedding is normed already (ModernBERT).
  embedding: with learned positions and segment types where the model has them.  head: for masked words, or None.
  classifier: for fine-tuning, or None.
  embedding_dropout, mixer_dropout, channel_dropout: shares dropped after each, where a key is given; attention's weights are never dropped.
  activations, remat: as for LM; norms have float32 statistics whatever the activations.
  """
  vocab: int
  width: int
  pattern: tuple[Mixer | Block, ...]
  depth: int
  channel: ChannelMixer | None = None
  norm: LayerNorm | RMSNorm = LayerNorm(1e-12)
  post_norm: bool = True
  first_norm: bool = True
  embedding: Embedding = Embedding(norm=LayerNorm(1e-12))
  head: MaskedHead | None = MaskedHead()
  classifier: Classifier | None = None
  embedding_dropout: float = 0.0
  mixer_dropout: float = 0.0
  channel_dropout: float = 0.0
  activations: str = 'float32'
  remat: str = 'block'

  def __post_init__(self):
    self._check()
    if self.post_norm and not self.first_norm:
      raise ValueError('Encoder: first_norm=False needs post_norm=False, where the first norm stands before the first mixer')
    if causal := [type(b.mixer).__name__ for b in self.blocks if b.mixer.has_state]:
      raise ValueError(f'Encoder: {causal[0]} reads in one direction; use Bidirectional({causal[0]}(...)), or causal=False for Attention')

  # What is in the network.

  @property
  def _lead(self) -> int:
    return 0 if self.first_norm else 1

  def _block_params(self, block: Block, index: int = 1):
    tree = dict(mixer=block.mixer.params(self.width))
    if index or self.first_norm:
      tree['norm_mixer'] = self.norm.params(self.width)
    if block.channel is not None:
      tree |= dict(norm_channel=self.norm.params(self.width), channel=block.channel.params(self.width))
    return tree

  def params(self) -> dict[str, Any]:
    """Declarations: embedding, lead, blocks, tail (see Stack), norm (pre-norm only), head and classifier where there are any."""
    tree = dict(embedding=self.embedding.params(self.vocab, self.width)) | self._stack_params()
    if not self.post_norm:
      tree['norm'] = self.norm.params(self.width)
    if self.head is not None:
      tree['head'] = self.head.params(self.vocab, self.width)
    return tree if self.classifier is None else tree | dict(classifier=self.classifier.params(self.width))

  # What it computes.

  def apply(self, params, tokens: jax.Array, state=None, segment_ids: jax.Array | None = None, *, types: jax.Array | None = None,
            key: jax.Array | None = None):
    """tokens int32 [batch, time] -> (float32 logits of masked words [batch, time, vocab], None).

    state: None; an encoder has none.  segment_ids: int32 [batch, time], documents of a row, 0 for padding, whose outputs mean nothing.
    types: int32 [batch, time], kind of segment (BERT: first or second sentence); None: all 0.
    key: for dropout; without one nothing is dropped.
    """
    x, _ = self.hidden(params, tokens, state, segment_ids, types=types, key=key)
    return self.logits(params, x), None

  def classify(self, params, tokens: jax.Array, segment_ids: jax.Array | None = None, *, types: jax.Array | None = None, documents: int = 1,
               key: jax.Array | None = None) -> jax.Array:
    """tokens int32 [batch, time] -> float32 [batch, documents, labels], of the first `documents` documents of every row."""
    if self.classifier is None:
      raise ValueError('Encoder: classifier is None; it needs one to classify')
    keys = (None, None) if key is None else jax.random.split(key)
    x, _ = self.hidden(params, tokens, None, segment_ids, types=types, key=keys[0])
    return self.classifier.apply(params['classifier'], x, segment_ids, documents, keys[1])

  def logits(self, params, x: jax.Array) -> jax.Array:
    """The head for masked words: x [..., width] from `hidden` -> float32 [..., vocab]."""
    if self.head is None:
      raise ValueError('Encoder: head is None; it needs one to predict words')
    return self.head.apply(params['head'], params['embedding']['table'], x)

  def hidden(self, params, tokens: jax.Array, state=None, segment_ids: jax.Array | None = None, *, types: jax.Array | None = None,
             key: jax.Array | None = None):
    """As `apply`, without the head: ([batch, time, width] in the activations' dtype, None)."""
    if state is not None:
      raise ValueError('Encoder: it reads in both directions and has no state: state must be None')
    keys = (None, None) if key is None else jax.random.split(key)
    x = drop(self._embed(params, tokens, segment_ids, types), self.embedding_dropout, keys[0])
    x = constrain(x, 'batch', 'time', None)
    one = lambda index: None if key is None else jax.random.fold_in(keys[1], index)
    step = lambda block, params, carry, state, index: self._block(block, params, carry, state, segment_ids, one(index))
    carry, _ = self._through(params, (x, self._signals(x)), None, step, recompute=True)
    return self._top(params, carry[0]), None

  def _embed(self, params, tokens, segment_ids=None, types=None) -> jax.Array:
    declared = self.embedding.params(self.vocab, self.width)
    batch, time = tokens.shape
    if self.embedding.positions and segment_ids is None and time > self.embedding.positions:
      raise ValueError(f'Encoder: {time} tokens, but embedding.positions={self.embedding.positions}')
    positions, _ = segments.positions(segment_ids, time, jnp.zeros((batch,), jnp.int32))
    return self.embedding.apply(dtypes.cast(declared, params['embedding'], dtypes.activation_dtype(self.activations)), tokens, positions, types)

  def _top(self, params, x: jax.Array) -> jax.Array:
    if self.post_norm:
      return x
    return self.norm.apply(dtypes.cast(self.norm.params(self.width), params['norm'], dtypes.activation_dtype(self.activations)), x)

  def _block(self, block: Block, params, carry, state, segment_ids, key=None):
    x, signals = carry
    keys = (None,) * 3 if key is None else jax.random.split(key, 3)
    y, _, signals = block.mixer.apply_signals(params['mixer'], self._before(params, 'norm_mixer', x), None, signals, segment_ids=segment_ids)
    x = self._sum(params, 'norm_mixer', x, drop(y.astype(x.dtype), self.mixer_dropout, keys[0]))
    if block.channel is not None:
      inner = dict(key=keys[1]) if block.channel.dropout else {}
      y, _ = block.channel.apply(params['channel'], self._before(params, 'norm_channel', x), None, segment_ids=segment_ids, **inner)
      x = self._sum(params, 'norm_channel', x, drop(y.astype(x.dtype), self.channel_dropout, keys[2]))
    return (x, signals), None

  def _before(self, params, name: str, x: jax.Array) -> jax.Array:
    return x if self.post_norm or name not in params else self.norm.apply(params[name], x)

  def _sum(self, params, name: str, x: jax.Array, y: jax.Array) -> jax.Array:
    x = x + y
    return constrain(self.norm.apply(params[name], x) if self.post_norm else x, 'batch', 'time', None)

  # What it costs.

  def _head_flops(self) -> float:
    return 0 if self.head is None else 2 * (self.vocab * self.width + self.width ** 2)

  def state_bytes(self, max_length: int) -> None:
    """None: an encoder carries nothing between calls."""
    return None
