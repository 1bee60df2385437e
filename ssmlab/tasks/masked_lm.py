"""Masked words: some tokens are hidden and predicted from both sides.  BERT, arXiv 1810.04805, section 3.1; dynamic masks as in RoBERTa,
arXiv 1907.11692, section 4.1; 30% and the head on masked positions only as in MosaicBERT, arXiv 2312.17482.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from ssmlab.tasks.next_token import cross_entropy


@dataclasses.dataclass(frozen=True)
class MaskedLM:
  """mean over the chosen tokens of -log p(token | the others).

  mask: id of [MASK].  ratio: share of the tokens that is chosen; held_out_ratio: in evaluation, the same for all, so that losses compare.
  random, kept: shares of the chosen ones that become any id below `ids`, and that stay as they are; the rest becomes [MASK].
  ids: 0: the model's vocabulary.  whole_words: all tokens of a word are chosen or none.
  piece: positions of each row whose logits are in memory at once; 0 chooses.
  Masks are drawn anew in every step, from the run's seed and the step; [CLS], [SEP] and padding are never chosen (data.Documents).
  """
  mask: int
  ratio: float = 0.3
  held_out_ratio: float = 0.15
  random: float = 0.1
  kept: float = 0.1
  ids: int = 0
  whole_words: bool = False
  piece: int = 0

  targets_are = 'tokens'

  def __post_init__(self):
    for name in ('ratio', 'held_out_ratio'):
      if not 0 < getattr(self, name) <= 1:
        raise ValueError(f'MaskedLM: {name}={getattr(self, name)} must be above 0 and at most 1')
    if min(self.random, self.kept) < 0 or self.random + self.kept > 1:
      raise ValueError(f'MaskedLM: random={self.random} and kept={self.kept} must be at least 0 and together at most 1')

  def loss(self, model, params, batch, key: jax.Array):
    """(sum to differentiate, (count to divide by, sums to report)).

    batch: tokens, targets (the token, negative where nothing may be chosen), segment_ids, words, each int32 [batch, time].
    key: of masks and dropout.
    """
    draw, dropout = jax.random.split(key)
    return self._measured(model, params, batch, draw, self.ratio, dropout)

  def held_out(self, model, params, batch, key: jax.Array):
    """`loss` at held_out_ratio, without dropout."""
    return self._measured(model, params, batch, key, self.held_out_ratio, None)

  def _measured(self, model, params, batch, draw, ratio: float, dropout):
    tokens, places, targets = self.hide(batch, draw, ratio, self.ids or model.vocab)
    x, _ = model.hidden(params, tokens, None, batch['segment_ids'], key=dropout)
    x = jnp.take_along_axis(x, places[..., None], axis=1)                     # the head is computed on these only
    sums = cross_entropy(model.logits, params, x, targets, model.vocab, self.piece)
    read = jnp.sum(batch['segment_ids'] != 0).astype(sums['count'].dtype)
    return sums['nats'], (sums['count'], dict(loss=sums['nats'], accuracy=sums['hits'], tokens=read))

  def slots(self, time: int, ratio: float) -> int:
    """Positions of a row that the head is computed on: what is expected and two standard deviations; rows that draw more hide so many."""
    return min(time, math.ceil(ratio * time + 2 * math.sqrt(ratio * (1 - ratio) * time)))

  def predicted(self, length: int) -> float:
    """Share of the tokens of a training step that the head is computed on."""
    return self.slots(length, self.ratio) / length

  def hide(self, batch, key: jax.Array, ratio: float, ids: int):
    """(tokens with some hidden [batch, time], places int32 [batch, slots], targets int32 [batch, slots], -1 in slots not used).

    Every token, or word, draws a number and is chosen where it is below `ratio`; slots go to the lowest, wherever they stand.
    """
    tokens, allowed = batch['tokens'], (batch['targets'] >= 0) & (batch['segment_ids'] != 0)
    choose, what, which = jax.random.split(key, 3)
    drawn = jax.random.uniform(choose, tokens.shape)
    if self.whole_words:
      drawn = jnp.take_along_axis(drawn, batch['words'], axis=1)              # a word draws what its number draws
    lowest, places = jax.lax.top_k(-jnp.where(allowed, drawn, 2.0), self.slots(tokens.shape[1], ratio))
    chosen = -lowest < ratio
    original = jnp.take_along_axis(tokens, places, axis=1)
    kind = jax.random.uniform(what, places.shape)
    other = jax.random.randint(which, places.shape, 0, ids)
    hidden = jnp.where(kind < self.random, other, jnp.where(kind < self.random + self.kept, original, self.mask))
    rows = jnp.arange(tokens.shape[0])[:, None]
    return tokens.at[rows, places].set(jnp.where(chosen, hidden, original)), places, jnp.where(chosen, original, -1)
