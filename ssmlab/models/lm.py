"""The causal language model: embedding, a repeated pattern of blocks, norm, head.

Blocks are pre-norm: x += mixer(norm(x)), then x += channel(norm(x)).  How they are stacked and scanned: models.stack.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ssmlab.core import dtypes
from ssmlab.core.mesh import constrain
from ssmlab.layers.channel import ChannelMixer
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import LayerNorm, RMSNorm
from ssmlab.mixers import Mixer
from ssmlab.models.stack import Block, Stack
from ssmlab.ops import segments


@dataclasses.dataclass(frozen=True)
class LM(Stack):
  """tokens -> logits.

  vocab, width: sizes.  pattern: mixers or Blocks, repeated from the bottom up; a bare mixer is followed by `channel`.
  depth: number of blocks in all.  It need not be a multiple of the pattern: the first depth % len(pattern) entries come once more on top.
  norm: before every mixer, every channel mixer and the head.
  activations: 'float32' | 'bfloat16' (parameters, states, norms and softmax stay float32) | 'float64' (tests).
  remat: what the backward pass recomputes: 'block' (all of a block), 'dots' (all but matrix products), 'none'; 'offload' is 'block' with what enters
    the blocks kept in the host's memory (on a CPU, whose memory that is, no different).
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

  chunk = 1                                                 # tokens read, and drawn, in one step

  def __post_init__(self):
    self._check()
    if dropped := next((block.channel for block in self._pattern if block.channel is not None and block.channel.dropout), None):
      raise ValueError(f'{type(self).__name__}: the channel mixer has dropout={dropped.dropout}, which only an Encoder applies; it must be 0')

  # What is in the network.

  def _block_params(self, block: Block, index: int = 1):
    tree = dict(norm_mixer=self.norm.params(self.width), mixer=block.mixer.params(self.width))
    if block.channel is not None:
      tree |= dict(norm_channel=self.norm.params(self.width), channel=block.channel.params(self.width))
    return tree

  def params(self) -> dict[str, Any]:
    """Declarations: embedding, blocks (stacked, one entry per place in the pattern), tail (what is left on top), norm, head."""
    return dict(embedding=self.embedding.params(self.vocab, self.width), norm=self.norm.params(self.width),
                head=self.head.params(self.vocab, self.width)) | self._stack_params()

  def init_state(self, batch: int, max_length: int) -> dict[str, Any]:
    """Everything carried between calls, before the first token: zeros.

    max_length: tokens that will ever be read (prompt and generated); only attention's cache grows with it.
    blocks: leaves [layer, batch, ...]; tail: leaves [batch, ...]; segment: id of the document being read, 0 for unknown;
    hidden: float32 [batch, width], the head's input after the last token, from which the next one is drawn;
    position: tokens of the document read so far, where positions are learned.
    """
    def one(block: Block):
      tree = dict(mixer=block.mixer.init_state(self.width, batch, max_length))
      return tree if block.channel is None else tree | dict(channel=block.channel.init_state(self.width, batch))
    copies = lambda tree: jax.tree.map(lambda a: jnp.broadcast_to(a, (self._repeats, *a.shape)), tree)
    state = dict(segment=jnp.zeros((batch,), jnp.int32), hidden=jnp.zeros((batch, self.width), jnp.float32))
    for name, (blocks, _) in self._groups().items():
      state[name] = {str(i): copies(one(b)) if name == 'blocks' else one(b) for i, b in enumerate(blocks)}
    return state | (dict(position=jnp.zeros((batch,), jnp.int32)) if self.embedding.positions else {})

  def room(self, state) -> int | None:
    """Tokens that a state can still read, None without a bound; not to be traced."""
    rooms = [block.mixer.room(state[name][str(i)]['mixer']) for name, (blocks, _) in self._groups().items() for i, block in enumerate(blocks)]
    rooms += [self.embedding.positions - int(state['position'].max())] if self.embedding.positions else []
    return min((room for room in rooms if room is not None), default=None)

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
    turned = None if state is None or segment_ids is None else _other_document(state['segment'], segment_ids)
    positions, position = self._positions(tokens, state, turned, segment_ids)
    x = constrain(self._embed(params, tokens, segment_ids, positions), 'batch', 'time', None)
    step = lambda block, params, carry, state, index: self._block(block, params, carry, _fresh_rows(state, turned), segment_ids)
    carry, after = self._through(params, (x, self._signals(x)), state, step, recompute=state is None)
    x = self._top(params, carry[0])
    return x, None if state is None else self._state(after | position, state, x, segment_ids)

  def _positions(self, tokens, state, turned, segment_ids):
    """(position of every token where they are learned, {'position': the next one}); (None, {}) elsewhere."""
    if not self.embedding.positions:
      return None, {}
    batch, time = tokens.shape
    if segment_ids is None and time > self.embedding.positions:
      raise ValueError(f'LM: {time} tokens, but embedding.positions={self.embedding.positions}')
    carried = jnp.zeros((batch,), jnp.int32) if state is None else _fresh_rows(state['position'], turned)
    positions, position = segments.positions(segment_ids, time, carried)
    return positions, dict(position=position)

  def _embed(self, params, tokens, segment_ids=None, positions=None) -> jax.Array:
    if positions is None:
      positions, _ = self._positions(tokens, None, None, segment_ids)
    dtype = dtypes.activation_dtype(self.activations)
    return self.embedding.apply(dtypes.cast(self.embedding.params(self.vocab, self.width), params['embedding'], dtype), tokens, positions)

  def _top(self, params, x: jax.Array) -> jax.Array:
    return self.norm.apply(dtypes.cast(self.norm.params(self.width), params['norm'], dtypes.activation_dtype(self.activations)), x)

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

  def for_generation(self, length: int | None) -> tuple['LM', Callable[[Any], Any]]:
    """(model, function from this one's parameters to its): see Mixer.for_generation."""
    of = {block.mixer: block.mixer.for_generation(length) for block in self.blocks}
    if all(other == mixer for mixer, (other, _) in of.items()):
      return self, lambda params: params
    pattern = tuple(Block(of[block.mixer][0], block.channel) for block in self._pattern)

    def turned(params):
      groups = {}
      for name, (blocks, _) in self._groups().items():
        turns = [of[block.mixer][1] for block in blocks]
        groups[name] = {str(i): params[name][str(i)] | dict(mixer=(jax.vmap(turn) if name == 'blocks' else turn)(params[name][str(i)]['mixer']))
                        for i, turn in enumerate(turns)}
      return params | groups
    return dataclasses.replace(self, pattern=pattern), turned

  # What it costs.

  def state_bytes(self, max_length: int) -> int | None:
    """Bytes carried between calls, per sequence; None for an encoder, which carries nothing."""
    if not all(block.mixer.has_state for block in self.blocks):
      return None
    tree = jax.eval_shape(lambda: self.init_state(1, max_length))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _other_document(carried: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """True for rows whose first real token is of another document than the one the state has read.  bool [batch]."""
  first = jnp.argmax(segments.real(segment_ids), axis=1)
  current = jnp.take_along_axis(segment_ids, first[:, None], axis=1)[:, 0]
  return (carried != 0) & (current != 0) & (current != carried)


def _fresh_rows(state, rows: jax.Array | None):
  return state if state is None or rows is None else segments.fresh(state, rows)
