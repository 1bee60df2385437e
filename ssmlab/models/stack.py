"""A stack of blocks: a repeated pattern, scanned.  What the causal language model and the encoder share.

Layers of the same place in the pattern are one stacked array; the network is a `lax.scan` over repetitions of the pattern, so compile time
does not grow with depth and hybrids need no model of their own.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ssmlab.core import dtypes
from ssmlab.core.params import at_layer, shapes, size, stack
from ssmlab.layers.channel import ChannelMixer
from ssmlab.mixers import Mixer

REMAT = ('none', 'block', 'dots', 'offload')


@dataclasses.dataclass(frozen=True)
class Block:
  """A sequence mixer and the channel mixer after it (None: no channel mixer, as in Mamba)."""
  mixer: Mixer
  channel: ChannelMixer | None = None


class Stack:
  """Base of the networks: frozen dataclasses with the fields vocab, width, pattern, depth, channel, norm, embedding, head, activations, remat.

  A subclass says what is in a block (`_block_params(block, index of its layer)`, `_block`) and what is before and after the blocks (`_embed`, `_top`, `logits`).
  Trees of parameters and states hold the blocks in `blocks` (stacked, one entry per place in the pattern), `tail` (the layers left on top)
  and, where the lowest block differs from the others, `lead`.
  """

  _lead = 0                                                 # lowest blocks that stand outside the scan

  def _check(self) -> None:
    name_of = type(self).__name__
    for name in ('vocab', 'width', 'depth'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name_of}: {name}={getattr(self, name)} must be at least 1')
    if not self.pattern:
      raise ValueError(f'{name_of}: pattern is empty; it needs at least one mixer')
    if self.remat not in REMAT:
      raise ValueError(f'{name_of}: remat={self.remat!r} is not one of {", ".join(REMAT)}')
    dtypes.activation_dtype(self.activations)

  # What is in the network.

  @property
  def _pattern(self) -> tuple[Block, ...]:
    return tuple(p if isinstance(p, Block) else Block(p, self.channel) for p in self.pattern)

  @property
  def _scanned(self) -> tuple[Block, ...]:
    """The pattern as it is repeated above the lead."""
    lead = self._lead % len(self.pattern)
    return self._pattern[lead:] + self._pattern[:lead]

  @property
  def _repeats(self) -> int:
    return (self.depth - self._lead) // len(self.pattern)

  @property
  def blocks(self) -> tuple[Block, ...]:
    """Every block from the bottom up."""
    return tuple(self._pattern[index % len(self.pattern)] for index in range(self.depth))

  @property
  def max_length(self) -> int | None:
    """Most tokens of one document that can be read: the smallest of the blocks' and of learned positions; None without a bound."""
    bounds = [block.mixer.max_length for block in self.blocks] + [self.embedding.positions]
    return min((bound for bound in bounds if bound), default=None)

  def _groups(self) -> dict[str, tuple[tuple[Block, ...], int]]:
    """{name: (its blocks, index of the first layer)}; `blocks` is one period of the scan, left out where nothing repeats."""
    period, repeats, lead = len(self.pattern), self._repeats, self._lead
    above = lead + repeats * period
    groups = {'lead': (self.blocks[:lead], 0), 'blocks': (self._scanned if repeats else (), lead), 'tail': (self.blocks[above:], above)}
    return {name: group for name, group in groups.items() if name != 'lead' or lead}

  def _stack_params(self) -> dict[str, Any]:
    """Declarations of all blocks, group by group."""
    period, tree = len(self.pattern), {}
    for name, (blocks, first) in self._groups().items():
      tree[name] = {}
      for place, block in enumerate(blocks):
        one = self._block_params(block, first + place)
        tree[name][str(place)] = (stack(one, self._repeats, first=first + place, stride=period, count=self.depth) if name == 'blocks'
                                  else at_layer(one, first + place, self.depth))
    return tree

  def layers(self, tree) -> list[Any]:
    """Every block's part of a tree of parameters, gradients or states, from the bottom up; numpy arrays give views."""
    found = []
    for name, (blocks, _) in self._groups().items():
      for repeat in range(self._repeats if name == 'blocks' else 1):
        for place in range(len(blocks)):
          part = tree[name][str(place)]
          found.append(jax.tree.map(lambda leaf: leaf[repeat, ...], part) if name == 'blocks' else part)
    return found

  # What it computes.

  def _through(self, params, carry, state, step: Callable[..., tuple[Any, Any]], recompute: bool):
    """All blocks, from the bottom up: (what is carried above them, {group: state}).

    step: (block, params in the activations' dtype, carry, state, index of the layer) -> (carry, state).
    recompute: as the field remat says, in the backward pass.
    """
    dtype, declared, after = dtypes.activation_dtype(self.activations), self._stack_params(), {}
    for name, (blocks, first) in self._groups().items():
      after[name] = {}
      if not blocks:
        continue
      one = {str(i): self._block_params(block, first + i) for i, block in enumerate(blocks)} if name == 'blocks' else declared[name]
      run = self._recomputed(lambda carry, xs, blocks=blocks, one=one: self._section(blocks, one, dtype, step, carry, *xs), recompute)
      xs = params[name], state and state[name]
      if name == 'blocks':
        carry, after[name] = jax.lax.scan(run, carry, (*xs, first + len(blocks) * jnp.arange(self._repeats)))
      else:
        carry, after[name] = run(carry, (*xs, first))
    return carry, after

  def _section(self, blocks, declared, dtype, step, carry, params, state, first):
    """One run through some blocks: (carry, their states)."""
    params, after = dtypes.cast(declared, params, dtype), {}
    for place, block in enumerate(blocks):
      at = str(place)
      carry, after[at] = step(block, params[at], carry, state and state[at], first + place)
    return carry, after

  def _recomputed(self, run, recompute: bool):
    if not recompute or self.remat == 'none':
      return run
    policies = jax.checkpoint_policies
    if self.remat == 'offload':
      policy = policies.save_and_offload_only_these_names(names_which_can_be_saved=[], names_which_can_be_offloaded=['carry'], offload_src='device',
                                                          offload_dst='pinned_host')
      named = lambda carry, xs: run(jax.tree.map(lambda x: checkpoint_name(x, 'carry'), carry), xs)
      return jax.checkpoint(named, prevent_cse=False, policy=policy)
    policy = policies.dots_with_no_batch_dims_saveable if self.remat == 'dots' else None
    return jax.checkpoint(run, prevent_cse=False, policy=policy)

  def _signals(self, x: jax.Array) -> dict[str, jax.Array]:
    return {name: value for block in self._pattern for name, value in block.mixer.signals(x).items()}

  def walk(self, params, tokens: jax.Array, segment_ids: jax.Array | None = None) -> Iterator[tuple[str, jax.Array]]:
    """(name, x [batch, time, width]) of the embedding and of every block's output, from the bottom up, one block at a time: for looking inside."""
    dtype = dtypes.activation_dtype(self.activations)
    x = self._embed(params, tokens, segment_ids)
    yield 'embedding', x
    carry = x, self._signals(x)
    for index, (block, mine) in enumerate(zip(self.blocks, self.layers(params))):
      carry, _ = self._block(block, dtypes.cast(self._block_params(block, index), mine, dtype), carry, None, segment_ids)
      yield f'block {index} ({type(block.mixer).__name__})', carry[0]

  def first_non_finite(self, params, tokens: jax.Array, segment_ids: jax.Array | None = None) -> str | None:
    """Name of the first layer whose output is not finite, or None.  For a run that has failed."""
    for name, x in self.walk(params, tokens, segment_ids):
      if not jnp.isfinite(x).all():
        return name
    if self.head is None:
      return None
    return None if jnp.isfinite(self.logits(params, self._top(params, x))).all() else 'head'

  # What it costs.

  def flops(self, length: int, predicted: float = 1.0) -> float:
    """Forward FLOPs per token at a context of `length` tokens, a multiply-add being two; the embedding's look-up counts nothing.

    predicted: share of the tokens that the head is computed on.
    """
    blocks = sum(b.mixer.flops(self.width, length) + (b.channel.flops(self.width) if b.channel else 0) for b in self.blocks)
    return blocks + predicted * self._head_flops()

  def _head_flops(self) -> float:
    return 2 * self.vocab * self.width

  def size(self) -> int:
    """Number of parameters."""
    return size(self.params())

  def shapes(self):
    """Shapes of the parameters, float32."""
    return shapes(self.params())


def unstacked(model: Stack, params) -> tuple[Stack, Any]:
  """The same network with a pattern that names every block, and its parameters: nothing is stacked, no loop runs over layers.

  What a step copies out of stacks and into them is a few percent of its time on a CPU; compilation takes as much longer as there are layers.
  """
  flat, layers, tree = dataclasses.replace(model, pattern=model.blocks), model.layers(params), dict(params)
  for name, (blocks, first) in flat._groups().items():
    parts = layers[first:first + len(blocks)]
    tree[name] = {str(place): jax.tree.map(lambda leaf: leaf[None], part) if name == 'blocks' else part for place, part in enumerate(parts)}
  return flat, tree
