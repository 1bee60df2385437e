"""From a path to documents: which files it means, how they are decompressed, what each format holds.

Every failure is a ValueError of one line that names the file and the place in it.
"""

import glob
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterator

import numpy as np

POINTER = b'version https://git-lfs'
BOM = b'\xef\xbb\xbf'


def find(path: str) -> list[str]:
  """The files that a file, folder (recursive, without hidden ones) or glob pattern names, sorted.  Raises ValueError if there are none."""
  path = os.path.expanduser(path)
  if os.path.isfile(path):
    return [path]
  if os.path.isdir(path):
    pattern = os.path.join(glob.escape(path), '**', '*')       # glob leaves hidden files and folders out
  elif glob.has_magic(path):
    pattern = path
  else:
    raise ValueError(f'{path}: no such file or folder')
  found = sorted(name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))
  if not found:
    raise ValueError(f'{path}: no file there')
  return found


def stamps(paths: list[str]) -> list[tuple[str, int, int]]:
  """Path, size and time of change of every file: what a cache of their content depends on."""
  return [(os.path.abspath(path), os.path.getsize(path), os.stat(path).st_mtime_ns) for path in paths]


def open_binary(path: str) -> io.BufferedIOBase:
  """The file, decompressed by its suffix.  Raises ValueError if it is missing, unreadable or only a Git LFS pointer."""
  try:
    with open(path, 'rb') as file:
      head = file.read(len(POINTER))
    if head == POINTER:
      raise ValueError(f'{path} is a Git LFS pointer, not the data itself; fetch it with `git lfs pull`')
    if path.endswith('.gz'):
      return gzip.open(path, 'rb')
    if path.endswith('.xz'):
      return lzma.open(path, 'rb')
    if path.endswith('.zst'):
      return io.BufferedReader(_Zstandard(path))
    return open(path, 'rb')
  except OSError as error:
    raise ValueError(f'{path} cannot be read: {error.strerror or error}') from None


class _Zstandard(io.RawIOBase):
  """The frames of a .zst file.  zstandard's own readers take a file that was cut off for one that ended."""

  def __init__(self, path: str):
    import zstandard
    self._file, self._new_frame = open(path, 'rb'), zstandard.ZstdDecompressor().decompressobj
    self._frame, self._packed, self._ready = None, b'', b''

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._ready:
      self._packed = self._packed or self._file.read(1 << 18)
      if not self._packed:
        if self._frame is not None:
          raise EOFError('it ends in the middle')
        return 0
      self._frame = self._frame or self._new_frame()
      self._ready = self._frame.decompress(self._packed)
      self._packed = b''
      if self._frame.eof:
        self._packed, self._frame = self._frame.unused_data, None
    size = min(len(buffer), len(self._ready))
    buffer[:size], self._ready = self._ready[:size], self._ready[size:]
    return size

  def close(self) -> None:
    self._file.close()
    super().close()


def read_bytes(path: str) -> bytes:
  """The whole decompressed file."""
  with open_binary(os.path.expanduser(path)) as file:
    return b''.join(_blocks(file, path, lambda: file.read(1 << 24)))


def _blocks(file: io.BufferedIOBase, path: str, read) -> Iterator[bytes]:
  """What `read` returns until it returns nothing; a broken compressed file is a ValueError."""
  try:
    while block := read():
      yield block
  except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
    raise ValueError(f'{path} cannot be decompressed: {error}') from None
  except Exception as error:
    if type(error).__name__ != 'ZstdError':       # not named above: zstandard is imported only when a .zst file is opened
      raise
    raise ValueError(f'{path} cannot be decompressed: {error}') from None


def _utf8(data: bytes, path: str, offset: int = 0) -> str:
  try:
    return data.decode()
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {offset + error.start}') from None


def kind(path: str) -> str:
  """'jsonl', 'parquet' or 'text', by the suffix before that of the compression."""
  for packed in ('.gz', '.xz', '.zst'):
    path = path.removesuffix(packed)
  suffix = os.path.splitext(path)[1].lower()
  return {'.jsonl': 'jsonl', '.ndjson': 'jsonl', '.parquet': 'parquet'}.get(suffix, 'text')


def read_text(path: str) -> str:
  """A plain text file, without its byte order mark."""
  data = read_bytes(path)
  cut = len(BOM) if data.startswith(BOM) else 0
  return _utf8(data[cut:], path, cut)


def cut(text: str, piece: int) -> Iterator[str]:
  """The text in parts of at most `piece` characters, cut at a line end, else a space, else anywhere; joined they are the text."""
  start = 0
  while piece and len(text) - start > piece:
    stop = text.rfind('\n', start, start + piece) + 1 or text.rfind(' ', start, start + piece) + 1 or start + piece
    yield text[start:stop]
    start = stop
  yield text[start:]


def read_jsonl(path: str, field: str) -> Iterator[str]:
  """The string `field` of the object on every line; blank lines are skipped."""
  offset = 0
  with open_binary(path) as file:
    for number, line in enumerate(_blocks(file, path, file.readline), 1):
      text = _utf8(line, path, offset).removeprefix('\ufeff' if number == 1 else '')
      offset += len(line)
      if not text.strip():
        continue
      try:
        record = json.loads(text)
      except ValueError as error:
        raise ValueError(f'{path}, line {number}: not JSON: {error}') from None
      if not isinstance(record, dict) or not isinstance(record.get(field), str):
        names = ', '.join(map(repr, list(record)[:8])) if isinstance(record, dict) else 'no object'
        raise ValueError(f'{path}, line {number}: no text in field {field!r} (found {names})')
      yield _encodable(record[field], f'{path}, line {number}')


def _encodable(text: str, where: str) -> str:
  """The text, unless it holds half of a surrogate pair, which JSON can write and UTF-8 cannot."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(f'{where}: character {error.start} is half of a surrogate pair, which is not text') from None
  return text


def read_parquet(path: str, field: str) -> Iterator[str]:
  """The column `field`, row by row; nulls are skipped."""
  open_binary(path).close()
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError:
    raise ValueError(f'{path}: reading parquet needs pyarrow: python -m pip install pyarrow') from None
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      if field not in file.schema_arrow.names:
        raise ValueError(f'{path}: no column {field!r}; it has {", ".join(map(repr, file.schema_arrow.names[:8]))}')
      for batch in file.iter_batches(columns=[field]):
        for value in batch.column(0).to_pylist():
          if value is not None and not isinstance(value, str):
            raise ValueError(f'{path}: column {field!r} holds {type(value).__name__}, not text')
          if value:
            yield value
  except (pyarrow.ArrowException, OSError) as error:
    raise ValueError(f'{path} cannot be read as parquet: {str(error).splitlines()[0]}') from None


def read_array_record(path: str) -> Iterator[str]:
  """The records of an ArrayRecord file, as UTF-8."""
  open_binary(path).close()
  try:
    import grain      # here, so that text is read without it
    records = grain.sources.ArrayRecordDataSource(path)
  except ImportError:
    raise ValueError(f'{path}: reading ArrayRecord needs array_record: python -m pip install array_record') from None
  except Exception as error:      # the package raises its own kinds
    raise ValueError(f'{path} cannot be read as ArrayRecord: {str(error).splitlines()[0]}') from None
  for number in range(len(records)):
    yield _utf8(records[number], f'{path}, record {number},')


def read_ids(path: str, dtype: str) -> np.ndarray:
  """The ids of a .npy file, or of a file of `dtype` without header; memory-mapped, one axis, not empty."""
  open_binary(path).close()
  size = os.path.getsize(path)
  if not size:
    raise ValueError(f'{path} is empty')
  if path.endswith('.npy'):
    try:
      ids = np.load(path, mmap_mode='r')
    except (ValueError, EOFError, OSError) as error:
      raise ValueError(f'{path} cannot be read as .npy: {error}') from None
    if ids.ndim != 1 or ids.dtype.kind not in 'iu' or not ids.size or ids.min() < 0:
      raise ValueError(f'{path}: needs integers >= 0 along one axis, has {ids.dtype} {list(ids.shape)}')
    return ids
  if size % np.dtype(dtype).itemsize:
    raise ValueError(f'{path}: {size} bytes are not a whole number of {dtype}; see data.source.dtype')
  return np.memmap(path, np.dtype(dtype).newbyteorder('<'), 'r')
