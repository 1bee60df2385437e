"""From a source to batches: the data part of an experiment."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np

from ssmlab.data import corpus
from ssmlab.data.corpus import Corpus
from ssmlab.data.sources import SPLITS, EmptySplit, Source, StandardLibrary, Text
from ssmlab.data.tokenizers import Bytes, Tokenizer

Batch = dict[str, np.ndarray]
Rows = slice | np.ndarray          # of a batch: those that a host reads


@dataclasses.dataclass(frozen=True)
class Data:
  """Documents of `source` in rows of `length` tokens.

  A batch has three int32 arrays [batch, length]:
    tokens: each document is `end`, its tokens..., so that its first token is predicted too.
    targets: the next token of the same document, `end` after its last one, -1 where there is none (padding).
    segment_ids: 1, 2, ... for the documents of the row, 0 for padding.

  source: a str is the path of a Text, so that a command line can name one: data.source=FILE.
  length: tokens in a row.
  batch_size: rows in a step, over all devices and hosts.
  seed: order of the rows in training.
  pack: True: rows tile the stream of all documents, so that none is wasted; a document that crosses a border goes on in another row,
    from a fresh state.  False: a row holds one document, or one part of it, and padding.
  """

  source: Source | str = StandardLibrary()
  tokenizer: Tokenizer = Bytes()
  length: int = 512
  batch_size: int = 8
  seed: int = 0
  pack: bool = True

  targets_are = 'next tokens'

  def __post_init__(self):
    if isinstance(self.source, str):
      object.__setattr__(self, 'source', Text(self.source))
    if self.length < 1 or self.batch_size < 1:
      raise ValueError(f'data.length {self.length} and data.batch_size {self.batch_size}: both must be at least 1')

  @property
  def end(self) -> int:
    """The id that opens and closes a document."""
    return corpus.end_of(self.source, self.tokenizer)

  def check(self, vocab: int) -> None:
    """Raises ValueError if the data hold, or may hold, ids that a model of `vocab` ids does not have."""
    largest = self.source.largest()
    needed, what = (self.tokenizer.vocab, self.tokenizer) if largest is None else (max(largest, self.end) + 1, self.source)
    if needed > vocab:
      raise ValueError(f'model.vocab is {vocab}, but {what} needs at least {needed}')

  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch over all hosts, without reading any data."""
    row = jax.ShapeDtypeStruct((self.batch_size, self.length), np.int32)
    return dict(tokens=row, targets=row, segment_ids=row)

  def train_batches(self, start_step: int = 0, rows: Rows = slice(None)) -> Iterator[Batch]:
    """Batches for steps start_step, start_step + 1, ... without end; of each the given rows only.

    The batch of a step depends on the config and the step alone, so starting at step n is resuming there.  Every row is seen once
    before any is seen again, in a new order each time.  A last row that is not full is left out if it is not the only one.
    """
    data = self._corpus('train')
    begins, sizes = _windows(data, self.length, self.pack)
    if self.pack and len(begins) > 1 and sizes[-1] < self.length:
      begins, sizes = begins[:-1], sizes[:-1]
    return self._steps(len(begins), start_step, lambda chosen: self._batch(data, begins[chosen[rows]], sizes[chosen[rows]]))

  def _steps(self, count: int, start_step: int, batch: Callable[[np.ndarray], Batch]) -> Iterator[Batch]:
    """Batches without end of `count` rows in a new order each time; batch: indices of all rows of a step -> the rows that are wanted."""
    # Indices are batched before the rows are read, so that the hosts' shares make up the same global batch however many there are.
    steps = grain.MapDataset.range(count).seed(self.seed).shuffle().repeat().batch(self.batch_size, drop_remainder=True).map(batch)
    return iter(steps.slice(slice(start_step, None)).to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))

  def eval_batches(self, split: str, max_tokens: int | None = None, rows: Rows = slice(None)) -> Iterator[Batch]:
    """Every token of the split once, in order; with max_tokens, only as many batches as are needed for so many predictions.
    Raises ValueError at once, not at the first batch, if the split is empty.

    A document longer than a row goes on in the next row with fresh context.  The last batch is filled with rows of padding, so that
    all have one shape.  With `rows`, those of each batch only; every choice of rows gives the same number of batches.
    """
    data = self._corpus(split)
    begins, sizes = _windows(data, self.length, self.pack)
    before = np.cumsum(sizes) - sizes      # predictions in the rows above
    fill = (0, -len(begins) % self.batch_size)
    begins, sizes = np.pad(begins, fill), np.pad(sizes, fill)
    share = [at + np.arange(self.batch_size)[rows] for at in range(0, len(before), self.batch_size)
             if max_tokens is None or before[at] < max_tokens]
    return (self._batch(data, begins[chosen], sizes[chosen]) for chosen in share)

  def count_bytes(self, targets: np.ndarray) -> int:
    """UTF-8 bytes of the text that the targets spell: bits per byte = nats / ln 2 / this.

    0 for padding and for `end`, which is predicted but is not text; 0 throughout for a source of ids that other than the tokenizer
    wrote.  Exact for byte-level tokenizers that do not normalise; SentencePiece may count one leading space for each document.
    """
    return corpus.count_bytes(self.source, self.tokenizer, np.asarray(targets))

  def bytes_per_token(self, split: str) -> float:
    """UTF-8 bytes of the split's text over predicted tokens (those of the documents and one `end` each)."""
    about = self._corpus(split).about
    return about['bytes'] / about['tokens']

  def text(self, split: str, max_bytes: int) -> bytes:
    """The first max_bytes of the split's documents, joined, as UTF-8: what gzip or xz is given for comparison."""
    if not corpus.knows_text(self.source, self.tokenizer):
      raise ValueError(f'{self.source} holds id {self.source.largest()}, which {self.tokenizer} does not have: its text is not known')
    parts, size = [], 0
    for _, document in self.source.documents(split):
      text = document if isinstance(document, str) else self.tokenizer.decode(document[:max_bytes - size])
      parts.append(text.encode())
      size += len(parts[-1])
      if size >= max_bytes:
        break
    return b''.join(parts)[:max_bytes]

  def fingerprint(self) -> dict:
    """What the data are: per split sha256 of the ids, tokens, documents and bytes (None where the split is empty); tokenizer; Python
    version where the corpus depends on it.  Raises ValueError if there is nothing to train on."""
    about = {split: self._about(split) for split in SPLITS}
    about['tokenizer'] = self.tokenizer.fingerprint()
    if isinstance(self.source, StandardLibrary):
      about['python'] = sys.version.split()[0]
    return about

  def _about(self, split: str) -> dict | None:
    try:
      return dict(self._corpus(split).about)
    except EmptySplit:
      if split == 'train':
        raise
      return None

  def _corpus(self, split: str) -> Corpus:
    return corpus.load(self.source, self.tokenizer, split)

  def _batch(self, data: Corpus, begins: np.ndarray, sizes: np.ndarray) -> Batch:
    shape = len(begins), self.length
    tokens, targets, segments = np.full(shape, self.end, np.int32), np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
    for row, (begin, size) in enumerate(zip(begins, sizes)):
      window = data.tokens[begin:begin + size + 1]
      tokens[row, :size], targets[row, :size] = window[:-1], window[1:]
      first, last = np.searchsorted(data.starts, [begin + 1, begin + size])      # documents that start inside the row
      segments[row, 0] = size > 0
      segments[row, data.starts[first:last] - begin] = 1
      segments[row, :size] = np.cumsum(segments[row, :size])
    return dict(tokens=tokens, targets=targets, segment_ids=segments)


@functools.lru_cache(maxsize=16)
def _windows(data: Corpus, length: int, pack: bool) -> tuple[np.ndarray, np.ndarray]:
  """First position and size of every row."""
  starts = np.zeros(1, np.int64) if pack else data.starts
  stops = np.append(starts[1:], data.positions)
  counts = -(-(stops - starts) // length)
  ordinal = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)      # of the row within its document
  begins = np.repeat(starts, counts) + ordinal * length
  return begins, np.minimum(length, np.repeat(stops, counts) - begins)
