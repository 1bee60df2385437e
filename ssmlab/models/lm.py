"""The causal language model: embedding, a repeated pattern of blocks, norm, head.

Blocks are pre-norm: x += mixer(norm(x)), then x += channel(norm(x)).  Layers of the same place in the pattern are one stacked array; the
network is a `lax.scan` over repetitions of the pattern, so compile time does not grow with depth and hybrids need no model of their own.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssmlab.core import dtypes
from ssmlab.core.mesh import constrain
from ssmlab.core.params import at_layer, shapes, size, stack
from ssmlab.layers.channel import ChannelMixer
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import LayerNorm, RMSNorm
from ssmlab.mixers import Mixer
from ssmlab.ops import segments

REMAT = ('none', 'block', 'dots')


@dataclasses.dataclass(frozen=True)
class Block:
  """A sequence mixer and the channel mixer after it (None: no channel mixer, as in Mamba)."""
  mixer: Mixer
  channel: ChannelMixer | None = None


@dataclasses.dataclass(frozen=True)
class LM:
  """tokens -> logits.

  vocab, width: sizes.  pattern: mixers or Blocks, repeated from the bottom up; a bare mixer is followed by `channel`.
  depth: number of blocks in all.  It need not be a multiple of the pattern: the first depth % len(pattern) entries come once more on top.
  norm: before every mixer, every channel mixer and the head.
  activations: 'float32' | 'bfloat16' (parameters, states, norms and softmax stay float32) | 'float64' (tests).
  remat: what the backward pass recomputes: 'block' (all of a block), 'dots' (all but matrix products), 'none'.
  """
  vocab: int
  width: int
  pattern: tuple[Mixer | Block, ...]
  depth: int
  channel: ChannelMixer | None = None
  norm: RMSNorm | LayerNorm = RMSNorm()
  embedding: Embedding = Embedding()
  head: Head = Head()
  activations: str = 'float32'
  remat: str = 'block'

  def __post_init__(self):
    for name in ('vocab', 'width', 'depth'):
      if getattr(self, name) < 1:
        raise ValueError(f'LM: {name}={getattr(self, name)} must be at least 1')
    if not self.pattern:
      raise ValueError('LM: pattern is empty; it needs at least one mixer')
    if self.remat not in REMAT:
      raise ValueError(f'LM: remat={self.remat!r} is not one of {", ".join(REMAT)}')
    dtypes.activation_dtype(self.activations)

  # What is in the network.

  @property
  def _pattern(self) -> tuple[Block, ...]:
    return tuple(p if isinstance(p, Block) else Block(p, self.channel) for p in self.pattern)

  @property
  def _repeats(self) -> int:
    return self.depth // len(self.pattern)

  @property
  def _tail(self) -> tuple[Block, ...]:
    return self._pattern[:self.depth % len(self.pattern)]

  @property
  def blocks(self) -> tuple[Block, ...]:
    """Every block from the bottom up."""
    return self._pattern * self._repeats + self._tail

  def _block_params(self, block: Block):
    tree = dict(norm_mixer=self.norm.params(self.width), mixer=block.mixer.params(self.width))
    if block.channel is not None:
      tree |= dict(norm_channel=self.norm.params(self.width), channel=block.channel.params(self.width))
    return tree

  def params(self) -> dict[str, Any]:
    """Declarations: embedding, blocks (stacked, one entry per place in the pattern), tail (what is left on top), norm, head."""
    period, repeats = len(self.pattern), self._repeats
    tree = dict(embedding=self.embedding.params(self.vocab, self.width), norm=self.norm.params(self.width),
                head=self.head.params(self.vocab, self.width), blocks={}, tail={})
    if repeats:
      for place, block in enumerate(self._pattern):
        tree['blocks'][str(place)] = stack(self._block_params(block), repeats, first=place, stride=period, count=self.depth)
    for place, block in enumerate(self._tail):
      tree['tail'][str(place)] = at_layer(self._block_params(block), repeats * period + place, self.depth)
    return tree

  def init_state(self, batch: int, max_length: int) -> dict[str, Any]:
    """Everything carried between calls, before the first token: zeros.

    max_length: tokens that will ever be read (prompt and generated); only attention's cache grows with it.
    blocks: leaves [layer, batch, ...]; tail: leaves [batch, ...]; segment: id of the document being read, 0 for unknown;
    hidden: float32 [batch, width], the head's input after the last token, from which the next one is drawn.
    """
    def one(block: Block):
      tree = dict(mixer=block.mixer.init_state(self.width, batch, max_length))
      return tree if block.channel is None else tree | dict(channel=block.channel.init_state(self.width, batch))
    copies = lambda tree: jax.tree.map(lambda a: jnp.broadcast_to(a, (self._repeats, *a.shape)), tree)
    blocks = {str(i): copies(one(b)) for i, b in enumerate(self._pattern)} if self._repeats else {}
    return dict(blocks=blocks, tail={str(i): one(b) for i, b in enumerate(self._tail)},
                segment=jnp.zeros((batch,), jnp.int32), hidden=jnp.zeros((batch, self.width), jnp.float32))

  # What it computes.

  def apply(self, params, tokens: jax.Array, state=None, segment_ids: jax.Array | None = None):
    """tokens int32 [batch, time] -> (float32 logits [batch, time, vocab], state after the tokens or None).

    state: from init_state or an earlier call; None starts fresh and keeps nothing.
    segment_ids: int32 [batch, time]; where the id changes a new document starts and everything carried is reset; 0 is padding.
    """
    x, state = self.hidden(params, tokens, state, segment_ids)
    return self.logits(params, x), state

  def logits(self, params, x: jax.Array) -> jax.Array:
    """The head: x [..., width] from `hidden` -> float32 [..., vocab]."""
    return self.head.apply(params['head'], params['embedding']['table'], x)

  def hidden(self, params, tokens: jax.Array, state=None, segment_ids: jax.Array | None = None):
    """As `apply`, without the head: ([batch, time, width] in the activations' dtype, state)."""
    dtype = dtypes.activation_dtype(self.activations)
    declared = self.params()
    cast = lambda name: dtypes.cast(declared[name], params[name], dtype)
    x = constrain(self.embedding.apply(cast('embedding'), tokens), 'batch', 'time', None)
    signals = {}
    for block in self._pattern:
      signals |= block.mixer.signals(x)
    turned = None if state is None or segment_ids is None else _other_document(state['segment'], segment_ids)
    carry, after = (x, signals), dict(blocks={}, tail={})
    if self._repeats:
      one = {str(i): self._block_params(b) for i, b in enumerate(self._pattern)}
      carry, after['blocks'] = jax.lax.scan(self._section(one, dtype, turned, segment_ids, state is None), carry,
                                            (params['blocks'], state and state['blocks']))
    if self._tail:
      run = self._section(declared['tail'], dtype, turned, segment_ids, state is None)
      carry, after['tail'] = run(carry, (params['tail'], state and state['tail']))
    x = self.norm.apply(cast('norm'), carry[0])
    return x, None if state is None else self._state(after, state, x, segment_ids)

  def _section(self, declared, dtype, turned, segment_ids, training: bool):
    """One run through (the first entries of) the pattern: (carry, (params, state)) -> (carry, state)."""
    def run(carry, entry):
      params, state = entry
      params = dtypes.cast(declared, params, dtype)
      after = {}
      for at, block in zip(declared, self._pattern):
        carry, after[at] = self._block(block, params[at], carry, _fresh_rows(state and state[at], turned), segment_ids)
      return carry, after
    if not training or self.remat == 'none':
      return run
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.remat == 'dots' else None
    return jax.checkpoint(run, prevent_cse=False, policy=policy)

  def _block(self, block: Block, params, carry, state, segment_ids):
    x, signals = carry
    y, mixer_state, signals = block.mixer.apply_signals(
        params['mixer'], self.norm.apply(params['norm_mixer'], x), state and state['mixer'], signals, segment_ids=segment_ids)
    x = constrain(x + y.astype(x.dtype), 'batch', 'time', None)
    after = dict(mixer=mixer_state)
    if block.channel is not None:
      y, after['channel'] = block.channel.apply(
          params['channel'], self.norm.apply(params['norm_channel'], x), state and state['channel'], segment_ids=segment_ids)
      x = constrain(x + y.astype(x.dtype), 'batch', 'time', None)
    return (x, signals), None if state is None else after

  def _state(self, after, state, x, segment_ids):
    if segment_ids is None:
      segment, last = state['segment'], x[:, -1]
    else:
      index = segments.last_real(segment_ids)
      take = lambda values: jnp.take_along_axis(values, jnp.maximum(index, 0).reshape(-1, *(1,) * (values.ndim - 1)), axis=1)[:, 0]
      read = index >= 0
      segment = jnp.where(read, take(segment_ids), state['segment'])
      last = jnp.where(read[:, None], take(x), state['hidden'].astype(x.dtype))
    return after | dict(segment=segment, hidden=last.astype(jnp.float32))

  def first_non_finite(self, params, tokens: jax.Array, segment_ids: jax.Array | None = None) -> str | None:
    """Name of the first layer whose output is not finite, or None.  Runs the blocks one by one: for a run that has failed."""
    dtype = dtypes.activation_dtype(self.activations)
    cast = lambda declared, values: dtypes.cast(declared, values, dtype)
    declared = self.params()
    x = self.embedding.apply(cast(declared['embedding'], params['embedding']), tokens)
    if not jnp.isfinite(x).all():
      return 'embedding'
    carry, period = (x, {k: v for block in self._pattern for k, v in block.mixer.signals(x).items()}), len(self.pattern)
    for index, block in enumerate(self.blocks):
      repeat, place = divmod(index, period)
      mine = jax.tree.map(lambda a: a[repeat], params['blocks'][str(place)]) if repeat < self._repeats else params['tail'][str(place)]
      carry, _ = self._block(block, cast(self._block_params(block), mine), carry, None, segment_ids)
      if not jnp.isfinite(carry[0]).all():
        return f'block {index} ({type(block.mixer).__name__})'
    x = self.norm.apply(cast(declared['norm'], params['norm']), carry[0])
    return None if jnp.isfinite(self.logits(params, x)).all() else 'head'

  # What it costs.

  def flops(self, length: int) -> float:
    """Forward FLOPs per token at a context of `length` tokens, a multiply-add being two; the embedding's look-up counts nothing."""
    blocks = sum(b.mixer.flops(self.width, length) + (b.channel.flops(self.width) if b.channel else 0) for b in self.blocks)
    return blocks + 2 * self.vocab * self.width

  def size(self) -> int:
    """Number of parameters."""
    return size(self.params())

  def state_bytes(self, max_length: int) -> int | None:
    """Bytes carried between calls, per sequence; None for an encoder, which carries nothing."""
    if not all(block.mixer.has_state for block in self.blocks):
      return None
    tree = jax.eval_shape(lambda: self.init_state(1, max_length))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

  def shapes(self):
    """Shapes of the parameters, float32."""
    return shapes(self.params())


def _other_document(carried: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """True for rows whose first real token is of another document than the one the state has read.  bool [batch]."""
  first = jnp.argmax(segments.real(segment_ids), axis=1)
  current = jnp.take_along_axis(segment_ids, first[:, None], axis=1)[:, 0]
  return (carried != 0) & (current != 0) & (current != carried)


def _fresh_rows(state, rows: jax.Array | None):
  """The state with the marked rows as if nothing had been read, which for every mixer is zero."""
  if state is None or rows is None:
    return state
  return jax.tree.map(lambda leaf: jnp.where(rows.reshape(-1, *(1,) * (leaf.ndim - 1)), jnp.zeros_like(leaf), leaf), state)
