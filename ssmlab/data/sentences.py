"""Sentences, or pairs of them, with labels: tables as GLUE has them (arXiv 1804.07461), .tsv or .jsonl, one example in a row of tokens."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator

import jax
import numpy as np

from ssmlab.data import files
from ssmlab.data.pipeline import Batch, Data, Rows
from ssmlab.data.sources import EmptySplit, Source
from ssmlab.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Table(Source):
  """Examples of a .tsv file (tabs, no quoting) or a .jsonl file, also .gz, .xz, .zst.

  text: the columns of the sentence or of the pair; label: the column of the label.  A column is a name in the first line of a .tsv, or its
  number from 0 for a file without such a line ('3'); for .jsonl a field.
  classes: what stands for class 0, 1, ...; empty: labels are numbers.
  valid, test, valid_share, test_share: as for Text.
  """
  path: str
  text: tuple[str, ...]
  label: str = 'label'
  classes: tuple[str, ...] = ()
  valid: str = ''
  test: str = ''
  valid_share: float = 0.05
  test_share: float = 0.05

  def __post_init__(self):
    super().__post_init__()
    if len(self.text) not in (1, 2):
      raise ValueError(f'Table: text={self.text!r} must name one column or two')

  def read(self, path: str) -> Iterator[tuple[str, str]]:
    """(name, JSON of [sentences, label]): a document is a str, so that the shares of all sources are drawn alike."""
    for name in files.find(path):
      for number, row in _rows(name, named=not all(column.isdigit() for column in (*self.text, self.label))):
        where = f'{name}, line {number}'
        lacking = [column for column in (*self.text, self.label) if column not in row]
        if lacking:
          raise ValueError(f'{where}: no column {lacking[0]!r}; it has {", ".join(map(repr, list(row)[:12]))}')
        yield where, json.dumps([[str(row[column]) for column in self.text], self._number(str(row[self.label]), where)])

  def _number(self, label: str, where: str) -> float:
    if self.classes:
      if label not in self.classes:
        raise ValueError(f'{where}: label {label!r} is not one of {", ".join(self.classes)}')
      return float(self.classes.index(label))
    try:
      return float(label)
    except ValueError:
      raise ValueError(f'{where}: label {label!r} is not a number; name the classes in data.source.classes') from None


def _rows(path: str, named: bool) -> Iterator[tuple[int, dict]]:
  """(line number, {column: value}) of a file; lines without content are skipped."""
  lines = [(number, line.rstrip('\r')) for number, line in enumerate(files.read_text(path).split('\n'), 1) if line.strip()]
  if files.kind(path) == 'jsonl':
    for number, line in lines:
      try:
        yield number, dict(json.loads(line))
      except (ValueError, TypeError) as error:
        raise ValueError(f'{path}, line {number}: not a JSON object: {error}') from None
    return
  header = lines.pop(0)[1].split('\t') if named and lines else None
  for number, line in lines:
    values = line.split('\t')
    yield number, dict(zip(header or map(str, range(len(values))), values))


# Columns and classes of GLUE's files; QQP and QNLI have an id before them.
GLUE = {
    'cola': dict(text=('3',), label='1'), 'sst2': dict(text=('sentence',)), 'mrpc': dict(text=('#1 String', '#2 String'), label='Quality'),
    'stsb': dict(text=('sentence1', 'sentence2'), label='score'), 'qqp': dict(text=('question1', 'question2'), label='is_duplicate'),
    'mnli': dict(text=('sentence1', 'sentence2'), label='gold_label', classes=('entailment', 'neutral', 'contradiction')),
    'qnli': dict(text=('question', 'sentence'), classes=('entailment', 'not_entailment')),
    'rte': dict(text=('sentence1', 'sentence2'), classes=('entailment', 'not_entailment'))}


def glue(task: str, train: str, valid: str = '') -> Table:
  """A GLUE task's files as released.  valid: its dev.tsv; '': a share of `train`.  Its test labels are not public."""
  if task not in GLUE:
    raise ValueError(f'glue: task {task!r} is not one of {", ".join(GLUE)}')
  return Table(train, **GLUE[task], valid=valid, valid_share=0.0 if valid else 0.1, test_share=0.0)


@dataclasses.dataclass(frozen=True)
class Sentences(Data):
  """One example in a row: `end` ([CLS]), a sentence, `separator`, and for a pair the other one and `separator` again.

  A batch has int32 arrays [batch, length]: tokens, segment_ids (1, and 0 for padding), types (1 in the second sentence), and labels
  float32 [batch].  Rows that only fill up the last batch of an evaluation are padding throughout.

  source: a Table.  separator: id that closes a sentence; -1: none.  Of what is too long the longer sentence loses its end first.
  pack: False: a row holds one example.
  """
  source: Table = Table('data/CoLA/train.tsv', ('3',), '1')
  separator: int = -1
  pack: bool = False

  targets_are = 'labels'

  def __post_init__(self):
    super().__post_init__()
    if not isinstance(self.source, Table) or self.pack:
      raise ValueError(f'Sentences: source={self.source!r} must be a Table, and pack={self.pack} must be False')

  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """As for Data."""
    row = super().shapes()['tokens']
    return dict(tokens=row, segment_ids=row, types=row, labels=jax.ShapeDtypeStruct((self.batch_size,), np.float32))

  def train_batches(self, start_step: int = 0, rows: Rows = slice(None)) -> Iterator[Batch]:
    """As for Data: the batch of a step depends on the config and the step alone."""
    whole = self._examples('train')
    return self._steps(len(whole), start_step, lambda chosen: self._assembled(whole, chosen[rows]))

  def eval_batches(self, split: str, max_tokens: int | None = None, rows: Rows = slice(None)) -> Iterator[Batch]:
    """Every example of the split once; with max_tokens, only as many batches as hold so many tokens, padding included."""
    whole = self._examples(split)
    most = len(whole) if max_tokens is None else max(max_tokens // self.length, 1)
    return (self._assembled(whole, (at + np.arange(self.batch_size))[rows]) for at in range(0, min(len(whole), most), self.batch_size))

  def _about(self, split: str) -> dict | None:
    try:
      whole = self._examples(split)
    except EmptySplit:
      if split == 'train':
        raise
      return None
    return dict(sha256=hashlib.sha256(repr([(list(map(list, ids)), label) for ids, label in whole]).encode()).hexdigest(), examples=len(whole),
                tokens=sum(len(ids) for parts, _ in whole for ids in parts))

  def _examples(self, split: str) -> tuple[tuple[tuple[np.ndarray, ...], float], ...]:
    return _examples(self.source, self.tokenizer, split, self.source.fingerprint())

  def _assembled(self, whole, chosen: np.ndarray) -> Batch:
    shape = len(chosen), self.length
    tokens, ids, types = np.full(shape, self.end, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    labels = np.zeros(len(chosen), np.float32)
    for row, index in enumerate(chosen):
      if index < len(whole):
        parts, labels[row] = whole[index]
        line, kinds = self._line(parts)
        tokens[row, :len(line)], ids[row, :len(line)], types[row, :len(line)] = line, 1, kinds
    return dict(tokens=tokens, segment_ids=ids, types=types, labels=labels)

  def _line(self, parts: tuple[np.ndarray, ...]) -> tuple[list[int], list[int]]:
    """(tokens, types) of an example, no longer than a row."""
    close = [self.separator] if self.separator >= 0 else []
    room, parts = self.length - 1 - len(parts) * len(close), [list(ids) for ids in parts]
    while sum(map(len, parts)) > room and any(parts):
      max(parts, key=len).pop()
    line, kinds = [self.end], [0]
    for number, ids in enumerate(parts):
      line, kinds = line + ids + close, kinds + [number] * (len(ids) + len(close))
    return line, kinds


@functools.lru_cache(maxsize=8)
def _examples(source: Table, tokenizer: Tokenizer, split: str, _fingerprint: str):
  """((ids of each sentence), label) of a split."""
  read = [json.loads(document) for _, document in source.documents(split)]
  return tuple((tuple(tokenizer.encode(text) for text in texts), label) for texts, label in read)
