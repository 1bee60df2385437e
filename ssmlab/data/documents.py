"""Documents that stay whole in a row, for encoders: padded one by one, or packed.

An encoder reads a document as a whole, so rows cannot be windows of one long stream.  Packing puts several into a row, with segment ids,
which is what gathering the tokens that are no padding ("unpadding", MosaicBERT, arXiv 2312.17482) becomes where shapes must be static.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import numpy as np

from ssmlab.data.corpus import Corpus
from ssmlab.data.pipeline import Batch, Data, Rows
from ssmlab.data.tokenizers import word_starts


@dataclasses.dataclass(frozen=True)
class Plan:
  """begins, sizes: int64 [parts], ids of each part in the corpus; order: parts row by row; offsets: [rows + 1], where rows begin in it."""
  begins: np.ndarray
  sizes: np.ndarray
  order: np.ndarray
  offsets: np.ndarray

  @property
  def rows(self) -> int:
    return len(self.offsets) - 1


@dataclasses.dataclass(frozen=True)
class Documents(Data):
  """Documents, or parts of long ones, each as `end`, ids..., `separator` ([CLS] ... [SEP]).

  A batch has int32 arrays [batch, length]:
    tokens, segment_ids: as for Data; a document begins with `end`, which stands for [CLS] here.
    targets: the token itself, -1 where there is nothing to predict ([CLS], [SEP], padding).
    words: number of the word in its row, for masking whole words: a word begins with a space or another sign than letters and digits.

  most: tokens that a document may have, [CLS] and [SEP] included; a longer one goes on in parts, each a document of its own.
  separator: id that closes a document; -1: none.  rest: False leaves out what follows the first part (MosaicBERT).
  pack: True: several documents share a row, as many as fit; False: a row holds one and padding.
  """
  most: int = 128
  separator: int = -1
  rest: bool = True

  targets_are = 'tokens'

  def __post_init__(self):
    super().__post_init__()
    if not self._special < self.most <= self.length:
      raise ValueError(f'data.most {self.most} must be above {self._special} and at most data.length {self.length}')

  @property
  def _special(self) -> int:
    return 1 + (self.separator >= 0)

  def check(self, vocab: int) -> None:
    """As for Data."""
    super().check(vocab)
    if self.separator >= vocab:
      raise ValueError(f'model.vocab is {vocab}, but data.separator is {self.separator}')

  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """As for Data."""
    arrays = super().shapes()
    return arrays | dict(words=arrays['tokens'])

  def train_batches(self, start_step: int = 0, rows: Rows = slice(None)) -> Iterator[Batch]:
    """As for Data: the batch of a step depends on the config and the step alone."""
    data = self._corpus('train')
    plan = self._plan(data, self.pack)
    return self._steps(plan.rows, start_step, lambda chosen: self._assembled(data, plan, chosen[rows]))

  def eval_batches(self, split: str, max_tokens: int | None = None, rows: Rows = slice(None)) -> Iterator[Batch]:
    """Every row of the split once; with max_tokens, only as many batches as hold so many ids.  Rows of padding fill the last batch."""
    data = self._corpus(split)
    plan = self._plan(data, self.pack)
    held = np.append(0, np.cumsum(plan.sizes[plan.order]))[plan.offsets]              # ids in the rows above
    share = [(at + np.arange(self.batch_size))[rows] for at in range(0, plan.rows, self.batch_size) if max_tokens is None or held[at] < max_tokens]
    return (self._assembled(data, plan, chosen) for chosen in share)

  def wasted(self, split: str, pack: bool) -> float:
    """Share of a batch's tokens that are padding, with and without packing."""
    plan = self._plan(self._corpus(split), pack)
    return 1 - float(np.sum(plan.sizes + self._special)) / (plan.rows * self.length)

  def _plan(self, data: Corpus, pack: bool) -> Plan:
    return _plan(data, self.length, self.most - self._special, self._special, self.rest, pack)

  def _assembled(self, data: Corpus, plan: Plan, chosen: np.ndarray) -> Batch:
    shape = len(chosen), self.length
    tokens, targets, ids = np.full(shape, self.end, np.int32), np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
    for row, index in enumerate(chosen):
      if index >= plan.rows:
        continue
      at = 0
      for number, part in enumerate(plan.order[plan.offsets[index]:plan.offsets[index + 1]], 1):
        begin, size = plan.begins[part], plan.sizes[part]
        text = slice(at + 1, at + 1 + size)
        tokens[row, text] = targets[row, text] = data.tokens[begin:begin + size]
        if self.separator >= 0:
          tokens[row, at + 1 + size] = self.separator
        ids[row, at:at + size + self._special] = number
        at += size + self._special
    starts = word_starts(self.tokenizer)
    begins = np.ones(shape, bool)                          # ids beyond the tokenizer's stand alone
    known = (targets >= 0) & (targets < len(starts))
    begins[known] = starts[targets[known]]
    begins[:, 1:] |= targets[:, :-1] < 0                    # after [CLS], [SEP] and padding
    return dict(tokens=tokens, targets=targets, segment_ids=ids, words=np.cumsum(begins, axis=1, dtype=np.int32) - 1)


@functools.lru_cache(maxsize=16)
def _plan(data: Corpus, length: int, room: int, special: int, rest: bool, pack: bool) -> Plan:
  """Parts of at most `room` ids, and the rows that they share."""
  first, stops = data.starts + 1, np.append(data.starts[1:], data.positions)
  counts = -(-(stops - first) // room)
  counts = counts if rest else np.minimum(counts, 1)
  ordinal = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)   # of the part in its document
  begins = np.repeat(first, counts) + ordinal * room
  sizes = np.minimum(room, np.repeat(stops, counts) - begins)
  if not len(sizes):
    raise ValueError('every document is empty: there is nothing to put into rows')
  row = best_fit(sizes + special, length) if pack else np.arange(len(sizes))
  order = np.argsort(row, kind='stable')
  return Plan(begins, sizes, order, np.searchsorted(row[order], np.arange(row.max() + 2)))


def best_fit(sizes: np.ndarray, length: int) -> np.ndarray:
  """Row of every part such that no row holds more than `length`: longest first, each into the row that it fills best.

  All parts of one size are placed at once, so the work grows with length^2 and hardly with the number of parts.
  """
  row, opened = np.empty(len(sizes), np.int64), 0
  by_room: list[list[np.ndarray]] = [[] for _ in range(length + 1)]               # rows that have so much room left
  by_size = np.argsort(-sizes, kind='stable')
  for size in np.unique(sizes)[::-1]:
    parts = by_size[np.searchsorted(-sizes[by_size], -size):np.searchsorted(-sizes[by_size], -size, side='right')]
    room = size
    while len(parts):
      while room <= length and not by_room[room]:
        room += 1
      if room > length:                                     # no row takes it: as many new ones as these parts fill
        fresh = opened + np.arange(-(-len(parts) // (length // size)))
        opened += len(fresh)
        by_room[length].append(fresh)
        room = length
      rows = np.concatenate(by_room[room])
      taken, by_room[room] = rows[:len(parts)], [rows[len(parts):]] if len(rows) > len(parts) else []
      row[parts[:len(taken)]], parts = taken, parts[len(taken):]
      by_room[room - size].append(taken)
      room = size
  return row
