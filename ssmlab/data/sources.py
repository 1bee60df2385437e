"""Where documents come from.  A source is config: a frozen dataclass; `documents(split)` yields (name, document).

A document is a str, or an integer array for a source that is already tokenised.

Splits.  'valid' and 'test' are the files that the fields of that name give; where a field is empty, the documents of the source are
ranked by a hash of their content and the share with the lowest (valid) or highest (test) hashes is held out, at least one document
where there are enough.  The same content is always in the same split, wherever and however often it occurs.
"""

import dataclasses
import functools
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator

import numpy as np

from ssmlab.data import files

SPLITS = ('train', 'valid', 'test')
Document = tuple[str, str | np.ndarray]


class EmptySplit(ValueError):
  """A split without documents."""


class Source:
  """The splits.  A subclass gives `read(path)` and the fields path, valid, test, valid_share and test_share."""

  end = -1      # the id that ends documents in the files, if there is one

  def largest(self) -> int | None:
    """The largest id in the files; None for a source of text."""
    return None

  def __post_init__(self):
    if min(self.valid_share, self.test_share) < 0 or self.valid_share + self.test_share >= 1:
      raise ValueError(f'valid_share {self.valid_share} and test_share {self.test_share}: both must be >= 0 and their sum below 1')

  def documents(self, split: str) -> Iterator[Document]:
    """(name, document) of a split, always in the same order.  Raises EmptySplit (a ValueError) if there is none."""
    if split not in SPLITS:
      raise ValueError(f'split {split!r}: must be one of {", ".join(SPLITS)}')
    named = {'train': '', 'valid': self.valid, 'test': self.test}[split]
    empty = True
    for item in (self.read(named) if named else self._share(split)):
      empty = False
      yield item
    if empty:
      cure = 'give more documents'
      if split != 'train':
        cure += f', name a file in data.source.{split} or raise data.source.{split}_share'
      raise EmptySplit(f'{named or self.path or type(self).__name__}: split {split!r} holds no document; {cure}')

  def files(self) -> list[str]:
    """Every file that the source reads."""
    return [name for path in (self.path, self.valid, self.test) if path for name in files.find(path)]

  def fingerprint(self) -> str:
    """Changes when the settings or a file's size or time change."""
    return hashlib.sha256(repr((self, files.stamps(self.files()))).encode()).hexdigest()

  def _share(self, split: str) -> Iterator[Document]:
    low, high = _bounds(self, self.fingerprint())
    for name, document in self.read(self.path):
      at = _hash(document)
      if split == ('valid' if at < low else 'test' if at >= high else 'train'):
        yield name, document


def _hash(document: str | np.ndarray) -> int:
  data = document.encode() if isinstance(document, str) else np.ascontiguousarray(document)
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'big')


@functools.lru_cache(maxsize=16)
def _bounds(source: Source, _fingerprint: str) -> tuple[int, int]:
  """Hashes below the first are 'valid', from the second on 'test'.  Ranks, not fixed bounds: a handful of documents must split too."""
  valid, test = (0 if source.valid else source.valid_share), (0 if source.test else source.test_share)
  if not valid + test:
    return 0, 1 << 64
  ranked = sorted({_hash(document) for _, document in source.read(source.path)})
  first = min(max(1, round(valid * len(ranked))), len(ranked) - 1) if valid and ranked else 0
  last = min(max(1, round(test * len(ranked))), len(ranked) - 1 - first) if test and ranked else 0
  return ranked[first] if first else 0, ranked[-last] if last else 1 << 64


@dataclasses.dataclass(frozen=True)
class StandardLibrary(Source):
  """The Python standard library's own source, about 10 MB: a corpus that needs no download.

  Identical files count once.  The bytes depend on the Python version, so numbers on it are comparable only within one version.
  Raises ValueError where Python has no .py files (zipped or stripped).
  """

  valid_share: float = 0.05
  test_share: float = 0.05

  OMIT = frozenset(('site-packages', 'dist-packages', '__pycache__', 'test', 'tests', 'idle_test', 'idlelib', 'lib2to3', 'turtledemo',
                    'ensurepip', 'pydoc_data'))
  path = valid = test = ''      # no fields: there is only one such corpus

  def files(self) -> list[str]:
    found = []
    for folder, below, names in os.walk(sysconfig.get_path('stdlib')):
      below[:] = [name for name in below if name not in self.OMIT]
      found += [os.path.join(folder, name) for name in names if name.endswith('.py')]
    if not found:
      raise ValueError(f'Python {sys.version.split()[0]} has no source files of its standard library here; '
                       'name a text file: data.source=FILE')
    return sorted(found)

  def read(self, _path: str) -> Iterator[Document]:
    seen = set()
    for path in self.files():
      data = files.read_bytes(path)
      digest = hashlib.sha256(data).digest()
      if data and digest not in seen:
        seen.add(digest)
        yield os.path.relpath(path, sysconfig.get_path('stdlib')), data.decode('utf-8', 'replace')     # some declare another encoding


@dataclasses.dataclass(frozen=True)
class Text(Source):
  """Text files: one file, a folder or a glob pattern; .jsonl, .parquet, anything else is plain text; also .gz, .xz, .zst.

  valid, test: files held out; where empty, shares of `path` are.
  field: of the jsonl object or the parquet column that holds the text.
  piece: a plain text file longer than this many characters is cut at line ends into documents of about that size, and one that is
    alone and must be split, into 20 at least; 0 keeps files whole.
  separator: where it stands one document ends and another begins ('\\n\\n': every paragraph is one, '<|endoftext|>'), and `piece` does not
    count; '': nowhere.
  """

  path: str
  valid: str = ''
  test: str = ''
  field: str = 'text'
  piece: int = 65536
  valid_share: float = 0.05
  test_share: float = 0.05
  separator: str = ''

  def __post_init__(self):
    super().__post_init__()
    if self.piece < 0:
      raise ValueError(f'piece {self.piece}: must be 0 (whole files) or a number of characters')

  def read(self, path: str) -> Iterator[Document]:
    found = files.find(path)
    empty = True
    for name in found:
      whole = self._read_file(name, alone=len(found) == 1 and path == self.path)
      for number, text in enumerate(part for text in whole for part in (text.split(self.separator) if self.separator else (text,))):
        if text:
          empty = False
          yield f'{name}:{number}', text
    if empty:
      raise ValueError(f'{path} is empty')

  def _read_file(self, name: str, alone: bool) -> Iterator[str]:
    match files.kind(name):
      case 'jsonl':
        return files.read_jsonl(name, self.field)
      case 'parquet':
        return files.read_parquet(name, self.field)
    text = files.read_text(name)
    if self.separator:
      return iter((text,))
    split = alone and not (self.valid and self.test)
    return files.cut(text, min(self.piece, -(-len(text) // 20)) if split else self.piece)


@dataclasses.dataclass(frozen=True)
class ArrayRecord(Source):
  """ArrayRecord files of UTF-8 records, one document each.  Fields as in Text."""

  path: str
  valid: str = ''
  test: str = ''
  valid_share: float = 0.05
  test_share: float = 0.05

  def read(self, path: str) -> Iterator[Document]:
    for name in files.find(path):
      for number, text in enumerate(files.read_array_record(name)):
        if text:
          yield f'{name}:{number}', text


@dataclasses.dataclass(frozen=True)
class Tokens(Source):
  """Ids written by another program: .bin without header (nanoGPT) or .npy, read by memory map.

  dtype: of .bin, 'uint16' or 'uint32'; .npy knows its own.
  end: the id between documents; -1: there is none and every file is one document (then name valid and test).
  The experiment's tokenizer only prints them and counts their bytes.
  """

  path: str
  dtype: str = 'uint16'
  valid: str = ''
  test: str = ''
  end: int = -1
  valid_share: float = 0.05
  test_share: float = 0.05

  def __post_init__(self):
    super().__post_init__()
    if self.dtype not in ('uint16', 'uint32'):
      raise ValueError(f"dtype {self.dtype!r}: must be 'uint16' or 'uint32'")

  def read(self, path: str) -> Iterator[Document]:
    for name in files.find(path):
      for number, ids in enumerate(_between(files.read_ids(name, self.dtype), self.end)):
        yield f'{name}:{number}', ids

  def largest(self) -> int:
    return _largest(self, self.fingerprint())


@functools.lru_cache(maxsize=16)
def _largest(source: Tokens, _fingerprint: str) -> int:
  return max(int(files.read_ids(name, source.dtype).max()) for name in source.files())


def _between(ids: np.ndarray, end: int, block: int = 1 << 24) -> Iterator[np.ndarray]:
  """The stretches of `ids` between the ids that equal `end`, without empty ones."""
  start = 0
  for base in range(0, len(ids) if end >= 0 else 0, block):
    for stop in base + np.flatnonzero(ids[base:base + block] == end):
      if stop > start:
        yield ids[start:stop]
      start = stop + 1
  if start < len(ids):
    yield ids[start:]
