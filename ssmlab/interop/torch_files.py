"""PyTorch's .pth and .bin files without PyTorch, and without running anything that is in them.

A file since PyTorch 1.6 is a zip archive: NAME/data.pkl, a pickle in which every tensor is a call of torch._utils._rebuild_tensor_v2 on a
storage, and NAME/data/KEY, the storage's bytes.  PyTorch, torch/serialization.py and torch/_utils.py.
"""

import collections
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np

from ssmlab.core.config import UserError

STORAGES = {
    'DoubleStorage': np.float64, 'FloatStorage': np.float32, 'HalfStorage': np.float16, 'BFloat16Storage': ml_dtypes.bfloat16,
    'LongStorage': np.int64, 'IntStorage': np.int32, 'ShortStorage': np.int16, 'CharStorage': np.int8, 'ByteStorage': np.uint8,
    'BoolStorage': np.bool_}


def read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
  """{key: array} of a saved state dict; arrays are read-only views of the file, read when they are used.

  Raises UserError for a file in the format before PyTorch 1.6, one that is damaged, and one whose pickle names anything but tensors,
  OrderedDict and plain containers: the message names it.
  """
  try:
    if not zipfile.is_zipfile(path):
      raise UserError(f'{path} is not a zip archive (PyTorch\'s format since 1.6); load and save it again with a newer PyTorch')
    with zipfile.ZipFile(path) as archive:
      return _tensors(_Archive(path, archive).load(), path)
  except UserError:
    raise
  except Exception as error:          # a damaged pickle can raise nearly anything
    raise UserError(f'{path} cannot be read: {type(error).__name__}: {" ".join(str(error).split())}') from error


class _Archive:
  """One file: finds storages and unpickles with them."""

  def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile):
    self.path, self.archive, self.storages = path, archive, {}
    found = [name for name in archive.namelist() if name == 'data.pkl' or name.endswith('/data.pkl')]
    if len(found) != 1:
      raise UserError(f'{path} holds {len(found)} entries data.pkl, expected 1: it is no PyTorch checkpoint')
    self.root = found[0].removesuffix('data.pkl')
    order = f'{self.root}byteorder'
    if order in archive.namelist() and archive.read(order).strip() != b'little':
      raise UserError(f'{path} was written on a big-endian machine')

  def load(self):
    with self.archive.open(f'{self.root}data.pkl') as file:
      return _Unpickler(file, self).load()

  def storage(self, key: str, dtype) -> np.ndarray:
    """The storage's numbers, flat: a memory map where the archive does not compress, as PyTorch's do not."""
    if key not in self.storages:
      entry = self.archive.getinfo(f'{self.root}data/{key}')
      if entry.compress_type == zipfile.ZIP_STORED and entry.file_size:
        with open(self.path, 'rb') as file:
          file.seek(entry.header_offset + 26)
          name, extra = struct.unpack('<HH', file.read(4))               # of the local header, whose lengths are its own
        start = entry.header_offset + 30 + name + extra
        raw = np.memmap(self.path, np.uint8, 'r', start, (entry.file_size,))
      else:
        raw = np.frombuffer(self.archive.read(entry), np.uint8)
      self.storages[key] = raw
    raw = self.storages[key]
    return raw[:raw.size // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize].view(dtype)


class _Unpickler(pickle.Unpickler):
  """Knows three kinds of names and refuses the rest, so that nothing in the file is ever called but `_rebuild`."""

  def __init__(self, file, archive: _Archive):
    super().__init__(file)
    self._archive = archive

  def find_class(self, module: str, name: str):
    if (module, name) == ('collections', 'OrderedDict'):
      return collections.OrderedDict
    if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
      return lambda *arguments: _rebuild(*arguments)          # a new function every time: the pickle could set attributes on it
    if module == 'torch' and name in STORAGES:
      return name
    raise UserError(f'{self._archive.path} names {module}.{name}, which is no tensor: refused, nothing was run')

  def persistent_load(self, reference):
    kind, storage, key, _, _ = reference
    if kind != 'storage' or storage not in STORAGES:
      raise UserError(f'{self._archive.path} refers to {kind!r} {storage!r}, which is no known storage')
    return self._archive.storage(str(key), STORAGES[storage])


def _rebuild(storage, offset, size, stride, *_) -> np.ndarray:
  """A tensor as a strided view; raises ValueError where it would reach outside of its storage."""
  if not isinstance(storage, np.ndarray) or len(size) != len(stride):
    raise ValueError('a tensor without a storage')
  if any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
    raise ValueError(f'a tensor of size {size}, stride {stride}, offset {offset}')
  last = offset + sum((n - 1) * step for n, step in zip(size, stride))
  if 0 in size:
    return np.zeros(size, storage.dtype)
  if last >= storage.size:
    raise ValueError(f'a tensor reaches number {last} of a storage of {storage.size}')
  steps = [step * storage.itemsize for step in stride]
  return np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), steps, writeable=False)


def _tensors(tree, path: pathlib.Path) -> dict[str, np.ndarray]:
  """The state dict, at the root or under the names that trainers give it."""
  for name in ('state_dict', 'model', 'module'):
    if isinstance(tree, dict) and isinstance(dict.get(tree, name), dict):
      tree = dict.get(tree, name)
  if not isinstance(tree, dict):
    raise UserError(f'{path} holds a {type(tree).__name__}, not a dict of tensors')
  for key, value in dict.items(tree):
    if not isinstance(key, str) or not isinstance(value, np.ndarray):
      raise UserError(f'{path}: entry {key!r} is a {type(value).__name__}, not a tensor')
  return dict(dict.items(tree))
