"""Documents cut into chunks of K tokens that never hold two documents, for CALM's autoencoder."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from ssmlab.data.corpus import Corpus
from ssmlab.data.pipeline import Batch, Data, Rows


@dataclasses.dataclass(frozen=True)
class Chunks(Data):
  """Documents, each as ids..., `end`, then padding to a multiple of `chunk` tokens, one after another.  arXiv 2510.27688; shaochenze/calm.

  A batch has int32 arrays [batch, length]:
    tokens: as above.  targets: the same, -1 where there is no chunk; `end` and padding count.
    segment_ids: 1 for every chunk, 0 where there is none: no chunk sees another, whosever it is.

  chunk: tokens in a chunk.  padding: id that fills a document's last chunk; -1: `end`.
  """
  chunk: int = 4
  padding: int = -1

  targets_are = 'tokens'

  def __post_init__(self):
    super().__post_init__()
    if self.chunk < 1 or self.length % self.chunk:
      raise ValueError(f'data.length {self.length} must be a multiple of data.chunk {self.chunk}, which must be at least 1')

  def check(self, vocab: int) -> None:
    """As for Data."""
    super().check(vocab)
    if self.padding >= vocab:
      raise ValueError(f'model.vocab is {vocab}, but data.padding is {self.padding}')

  @property
  def _at_once(self) -> int:
    return self.length // self.chunk                          # chunks in a row

  def train_batches(self, start_step: int = 0, rows: Rows = slice(None)) -> Iterator[Batch]:
    """As for Data: the batch of a step depends on the config and the step alone."""
    data = self._corpus('train')
    count = int(_ends(data, self.chunk)[-1])
    whole = max(count // self._at_once, 1)
    return self._steps(whole, start_step, lambda chosen: self._assembled(data, chosen[rows]))

  def eval_batches(self, split: str, max_tokens: int | None = None, rows: Rows = slice(None)) -> Iterator[Batch]:
    """Every chunk of the split once, in order; with max_tokens, only as many batches as hold so many tokens."""
    data = self._corpus(split)
    count = -(-int(_ends(data, self.chunk)[-1]) // self._at_once)
    return (self._assembled(data, (at + np.arange(self.batch_size))[rows]) for at in range(0, count, self.batch_size)
            if max_tokens is None or at * self.length < max_tokens)

  def _assembled(self, data: Corpus, chosen: np.ndarray) -> Batch:
    ends = _ends(data, self.chunk)
    index = np.asarray(chosen)[:, None] * self._at_once + np.arange(self._at_once)           # of every chunk in the split
    there = index < ends[-1]
    document = np.searchsorted(ends, np.minimum(index, ends[-1] - 1), side='right')
    before = np.where(document > 0, ends[document - 1], 0)
    stops = np.append(data.starts[1:], data.positions) + 1
    at = (data.starts[document] + 1 + (index - before) * self.chunk)[..., None] + np.arange(self.chunk)
    inside = (at < stops[document][..., None]) & there[..., None]
    fill = self.end if self.padding < 0 else self.padding
    tokens = np.where(inside, data.tokens[np.minimum(at, len(data.tokens) - 1)], fill).astype(np.int32).reshape(len(chosen), self.length)
    there = np.repeat(there, self.chunk, axis=1)
    return dict(tokens=tokens, targets=np.where(there, tokens, -1).astype(np.int32), segment_ids=there.astype(np.int32))


@functools.lru_cache(maxsize=16)
def _ends(data: Corpus, chunk: int) -> np.ndarray:
  """Chunks of the documents up to and including each, int64 [documents]."""
  sizes = np.diff(np.append(data.starts, data.positions))
  return np.cumsum(-(-sizes // chunk))
