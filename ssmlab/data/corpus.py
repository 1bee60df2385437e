"""A split as one flat array of ids, made once and kept in a cache folder.

Layout: every document is stored as `end`, ids..., and one `end` closes the split, so that position p predicts position p + 1 and a
document's last id predicts `end`.  On disk: <cache>/<key>/{tokens.npy, starts.npy, about.json}; the folder is written under another name
and then renamed, so that it is complete or does not exist.
"""

import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from ssmlab.data.sources import Source, Tokens
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
      os.makedirs(os.path.dirname(folder), exist_ok=True)
      temporary = tempfile.mkdtemp(prefix='.partial-', dir=os.path.dirname(folder))
    except OSError as error:
      logging.getLogger(__name__).warning('%s cannot be written (%s): tokenising in memory, again in every run; set SSMLAB_CACHE',
                                          os.path.dirname(folder), error.strerror)
      return _in_memory(source, tokenizer, split)
    try:
      _write(source, tokenizer, split, temporary)
      _publish(temporary, folder)
    finally:
      shutil.rmtree(temporary, ignore_errors=True)
  with open(os.path.join(folder, 'about.json'), encoding='utf-8') as file:
    about = json.load(file)
  return Corpus(np.load(os.path.join(folder, 'tokens.npy'), mmap_mode='r'), np.load(os.path.join(folder, 'starts.npy')), about)


def _publish(temporary: str, folder: str) -> None:
  """Gives the finished folder its name, unless another process was faster: then its copy is as good."""
  try:
    os.rename(temporary, folder)
  except OSError:
    if not os.path.isdir(folder):
      raise


def _write(source: Source, tokenizer: Tokenizer, split: str, folder: str) -> None:
  with open(os.path.join(folder, 'tokens.npy'), 'wb') as file:
    starts, about = _tokenise(source, tokenizer, split, file)
    file.flush()
    os.fsync(file.fileno())
  np.save(os.path.join(folder, 'starts.npy'), starts)
  with open(os.path.join(folder, 'about.json'), 'w', encoding='utf-8') as file:
    json.dump(about, file)


def _in_memory(source: Source, tokenizer: Tokenizer, split: str) -> Corpus:
  file = io.BytesIO()
  starts, about = _tokenise(source, tokenizer, split, file)
  file.seek(0)
  return Corpus(np.load(file), starts, about)


def _tokenise(source: Source, tokenizer: Tokenizer, split: str, file: BinaryIO) -> tuple[np.ndarray, dict]:
  """Writes the split to `file` as .npy, document by document; returns the starts and the facts about it."""
  given = isinstance(source, Tokens)
  dtype = np.dtype('<u2' if (source.largest() < 1 << 16 if given else tokenizer.vocab <= 1 << 16) else '<u4')
  end = np.array([end_of(source, tokenizer)], dtype)
  starts, position, size, digest = [], 0, 0, hashlib.sha256()

  def put(ids: np.ndarray) -> None:
    data = np.ascontiguousarray(ids, dtype).data
    file.write(data)
    digest.update(data)

  header = _header(file, dtype, 0)
  for name, document in source.documents(split):
    starts.append(position)
    put(end)
    for ids in (_blocks(document) if given else [_encode(tokenizer, name, document)]):
      put(ids)
      position += len(ids)
      size += count_bytes(source, tokenizer, ids) if given else 0
    position += 1
    size += 0 if given else len(document.encode())
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


def _encode(tokenizer: Tokenizer, name: str, text: str) -> np.ndarray:
  try:
    return tokenizer.encode(text)
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from None


def _blocks(ids: np.ndarray) -> Iterable[np.ndarray]:
  return (ids[at:at + BLOCK] for at in range(0, len(ids), BLOCK))


def end_of(source: Source, tokenizer: Tokenizer) -> int:
  """The id between documents: that of a source of ids, where it names one, else the tokenizer's."""
  return source.end if isinstance(source, Tokens) and source.end >= 0 else tokenizer.end


def count_bytes(source: Source, tokenizer: Tokenizer, ids: np.ndarray) -> int:
  """UTF-8 bytes of the text of `ids`; -1 (no target) and the `end` of a document count 0.

  0 for all of a source of ids that has ids which the tokenizer does not have, since then it is not the one that wrote them.
  """
  if isinstance(source, Tokens) and source.largest() >= tokenizer.vocab:
    return 0
  lengths = _lengths(tokenizer, end_of(source, tokenizer))
  return int(lengths[ids].sum())


@functools.lru_cache(maxsize=8)
def _lengths(tokenizer: Tokenizer, end: int) -> np.ndarray:
  """Bytes of every id; the last entry is for -1."""
  lengths = np.array([len(piece) for piece in tokenizer.pieces()] + [0])
  lengths[end] = 0
  return lengths
