"""A split as one flat array of ids, made once and kept in a cache folder.

Layout: every document is stored as `end`, ids..., and one `end` closes the split, so that position p predicts position p + 1 and a
document's last id predicts `end`.  On disk: <cache>/<key>/{tokens.npy, starts.npy, about.json}; the folder is written under another name
and then renamed, so that it is complete or does not exist.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from ssmlab.data.sources import Source
from ssmlab.data.tokenizers import Tokenizer

LAYOUT = 1          # part of the key: raise it when the layout or a reader changes what is stored
BLOCK = 1 << 22     # ids handled at a time, so that a document of any size needs little memory


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
  """tokens: [positions + 1], starts: [documents] int64, positions where documents begin; about: sha256, tokens, documents, bytes."""

  tokens: np.ndarray
  starts: np.ndarray
  about: dict

  @property
  def positions(self) -> int:
    """How many tokens are predicted: all ids and one `end` for each document."""
    return len(self.tokens) - 1


def load(source: Source, tokenizer: Tokenizer, split: str) -> Corpus:
  """The split, from the cache where it is there.  Raises what the source and the tokenizer raise."""
  key = hashlib.sha256(repr((LAYOUT, source.fingerprint(), tokenizer.fingerprint(), split)).encode()).hexdigest()[:32]
  folder = os.path.expanduser(os.environ.get('SSMLAB_CACHE') or os.path.join('~', '.cache', 'ssmlab'))
  return _load(source, tokenizer, split, os.path.join(folder, key))


@functools.lru_cache(maxsize=16)
def _load(source: Source, tokenizer: Tokenizer, split: str, folder: str) -> Corpus:
  if not os.path.isdir(folder):
    try:
      _make(source, tokenizer, split, folder)
    except OSError as error:
      logging.getLogger(__name__).warning('%s cannot be written (%s): tokenising in memory, again in every run; set SSMLAB_CACHE',
                                          os.path.dirname(folder), error.strerror)
      return _in_memory(source, tokenizer, split)
  with open(os.path.join(folder, 'about.json'), encoding='utf-8') as file:
    about = json.load(file)
  return Corpus(np.load(os.path.join(folder, 'tokens.npy'), mmap_mode='r'), np.load(os.path.join(folder, 'starts.npy')), about)


def _make(source: Source, tokenizer: Tokenizer, split: str, folder: str) -> None:
  """Writes the split under another name, then gives the finished folder its own."""
  os.makedirs(os.path.dirname(folder), exist_ok=True)
  temporary = tempfile.mkdtemp(prefix='.partial-', dir=os.path.dirname(folder))
  try:
    with _synced(os.path.join(temporary, 'tokens.npy')) as file:
      starts, about = _tokenise(source, tokenizer, split, file)
    with _synced(os.path.join(temporary, 'starts.npy')) as file:
      np.save(file, starts)
    with _synced(os.path.join(temporary, 'about.json')) as file:
      file.write(json.dumps(about).encode())
    os.rename(temporary, folder)
  except OSError:
    if not os.path.isdir(folder):      # else another process was faster, and its copy is as good
      raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _synced(path: str) -> Iterator[BinaryIO]:
  """A file whose content is on the disk before the folder gets its name."""
  with open(path, 'wb') as file:
    yield file
    file.flush()
    os.fsync(file.fileno())


def _in_memory(source: Source, tokenizer: Tokenizer, split: str) -> Corpus:
  file = io.BytesIO()
  starts, about = _tokenise(source, tokenizer, split, file)
  file.seek(0)
  return Corpus(np.load(file), starts, about)


def _tokenise(source: Source, tokenizer: Tokenizer, split: str, file: BinaryIO) -> tuple[np.ndarray, dict]:
  """Writes the split to `file` as .npy, document by document; returns the starts and the facts about it."""
  given = source.largest() is not None
  last = max(source.largest(), end_of(source, tokenizer)) if given else tokenizer.vocab - 1
  dtype = np.dtype('<u2' if last < 1 << 16 else '<u4')
  end = np.array([end_of(source, tokenizer)], dtype)
  starts, position, size, digest = [], 0, 0, hashlib.sha256()

  def put(ids: np.ndarray) -> None:
    for at in range(0, len(ids), BLOCK):
      data = np.ascontiguousarray(ids[at:at + BLOCK], dtype).data
      file.write(data)
      digest.update(data)

  header = _header(file, dtype, 0)
  for ids, text_size in (_given(source, tokenizer, split) if given else _encoded(source, tokenizer, split)):
    starts.append(position)
    put(end)
    put(ids)
    position += len(ids) + 1
    size += text_size
  put(end)
  file.seek(0)
  if _header(file, dtype, position + 1) != header:
    raise RuntimeError('numpy wrote .npy headers of different lengths; the cache relies on their padding')
  about = dict(sha256=digest.hexdigest(), tokens=position, documents=len(starts), bytes=size)
  return np.array(starts, np.int64), about


def _header(file: BinaryIO, dtype: np.dtype, length: int) -> int:
  """Writes a .npy header; numpy pads it so that the length can be filled in afterwards.  Returns where it ends."""
  np.lib.format.write_array_header_1_0(file, dict(descr=dtype.str, fortran_order=False, shape=(length,)))
  return file.tell()


def _given(source: Source, tokenizer: Tokenizer, split: str) -> Iterator[tuple[np.ndarray, int]]:
  """(ids, bytes of text) of every document of a source of ids."""
  for _, ids in source.documents(split):
    yield ids, sum(count_bytes(source, tokenizer, ids[at:at + BLOCK]) for at in range(0, len(ids), BLOCK))


def _encoded(source: Source, tokenizer: Tokenizer, split: str) -> Iterator[tuple[np.ndarray, int]]:
  """(ids, bytes of text) of every document of text, encoded in groups so that a tokenizer with threads can use them."""
  documents = source.documents(split)
  while group := _group(documents):
    encoded = iter(tokenizer.encode_all([text for _, text in group]))
    for name, text in group:
      try:
        yield next(encoded), len(text.encode())
      except ValueError as error:
        raise ValueError(f'{name}: {error}') from None


def _group(documents: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
  group, size = [], 0
  while size < BLOCK and (item := next(documents, None)):
    group.append(item)
    size += len(item[1])
  return group


def end_of(source: Source, tokenizer: Tokenizer) -> int:
  """The id between documents: that of a source of ids, where it names one, else the tokenizer's."""
  return source.end if source.end >= 0 else tokenizer.end


def knows_text(source: Source, tokenizer: Tokenizer) -> bool:
  """False for a source of ids among which some are not the tokenizer's, so that another one wrote them."""
  return source.largest() is None or source.largest() < tokenizer.vocab


def count_bytes(source: Source, tokenizer: Tokenizer, ids: np.ndarray) -> int:
  """UTF-8 bytes of the text of `ids`; -1 (no target) and the `end` of a document count 0.

  0 for everything where the text is not known.
  """
  if not knows_text(source, tokenizer):
    return 0
  lengths = _lengths(tokenizer, end_of(source, tokenizer))
  return int(lengths[ids].sum())


@functools.lru_cache(maxsize=8)
def _lengths(tokenizer: Tokenizer, end: int) -> np.ndarray:
  """Bytes of every id; the last entry is for -1."""
  lengths = np.array([len(piece) for piece in tokenizer.pieces()] + [0])
  lengths[end] = 0
  return lengths
