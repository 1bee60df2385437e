"""Files of tensors: what a path holds, as {key: array} that is read from disk when it is used."""

import json
import pathlib
import re

import ml_dtypes
import numpy as np

from ssmlab.core.config import UserError
from ssmlab.interop.torch_files import read_torch

DTYPES = {'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16, 'I64': np.int64, 'I32': np.int32,
          'I16': np.int16, 'I8': np.int8, 'U8': np.uint8, 'BOOL': np.bool_}
SUFFIXES = ('.safetensors', '.pth', '.bin')
INDICES = ('model.safetensors.index.json', 'pytorch_model.bin.index.json')
OTHER = re.compile(r'(training_args|optimizer|scheduler|rng_state.*|adapter_model)\.(bin|pth|safetensors)')


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """{key: read-only array} of a .safetensors file, mapped and not read.  Raises UserError for a damaged file.

  Format: 8 bytes length, a JSON header {key: dtype, shape, data_offsets}, the numbers.  github.com/huggingface/safetensors, README.
  The package's own reader copies everything at once; a checkpoint may be larger than half of the memory.
  """
  try:
    size = path.stat().st_size
    with open(path, 'rb') as file:
      length = int.from_bytes(file.read(8), 'little')
      if not 2 <= length <= size - 8:
        raise ValueError('it has no header')
      header = json.loads(file.read(length))
    body = np.memmap(path, np.uint8, 'r', 8 + length) if size > 8 + length else np.zeros(0, np.uint8)
    header.pop('__metadata__', None)
    return {key: _entry(key, entry, body) for key, entry in header.items()}
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{path} cannot be read: {error}') from error


def _entry(key: str, entry: dict, body: np.ndarray) -> np.ndarray:
  begin, end = entry['data_offsets']
  if entry['dtype'] not in DTYPES:
    raise UserError(f'tensor {key!r} is of type {entry["dtype"]}; allowed: {", ".join(DTYPES)}')
  dtype = np.dtype(DTYPES[entry['dtype']])
  if not 0 <= begin <= end <= body.size or end - begin != dtype.itemsize * int(np.prod(entry['shape'], dtype=np.int64)):
    raise ValueError(f'tensor {key!r} lies outside of the file: it is cut off or damaged')
  return body[begin:end].view(dtype).reshape(entry['shape'])


def read_file(path: pathlib.Path) -> dict[str, np.ndarray]:
  """{key: array} of one file, by its suffix."""
  if path.suffix not in SUFFIXES:
    raise UserError(f'{path} is not a file of tensors; allowed: {", ".join(SUFFIXES)}')
  return read_safetensors(path) if path.suffix == '.safetensors' else read_torch(path)


def _json(path: pathlib.Path) -> dict:
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read: {error}') from error
  if not isinstance(value, dict):
    raise UserError(f'{path} holds no JSON object')
  return value


def _shards(folder: pathlib.Path) -> list[pathlib.Path]:
  """The folder's files of tensors: those an index names, else the one with Hugging Face's name, else all of the first suffix there is."""
  for name in INDICES:
    if (folder / name).is_file():
      shards = sorted(set(_json(folder / name).get('weight_map', {}).values()))
      for shard in shards:
        if pathlib.PurePath(shard).name != shard or not (folder / shard).is_file():
          raise UserError(f'{folder / name} names {shard!r}, which is not in the folder')
      return [folder / shard for shard in shards]
  for name in ('model.safetensors', 'pytorch_model.bin'):
    if (folder / name).is_file():
      return [folder / name]
  for suffix in SUFFIXES:
    if found := sorted(path for path in folder.glob(f'*{suffix}') if not OTHER.fullmatch(path.name)):
      return found
  raise UserError(f'{folder} holds no files of tensors; looked for *{", *".join(SUFFIXES)}')


def read(path: str | pathlib.Path) -> tuple[dict | None, dict[str, np.ndarray], list[pathlib.Path]]:
  """(config.json or None, tensors, files that they came from) of a folder or of one file.

  Raises UserError where nothing is there, a shard is missing, or two files hold the same tensor.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise UserError(f'{path} does not exist')
  if path.is_file():
    return None, read_file(path), [path]
  config = _json(path / 'config.json') if (path / 'config.json').is_file() else None
  tensors, files = {}, _shards(path)
  for file in files:
    part = read_file(file)
    if twice := sorted(set(part) & set(tensors)):
      raise UserError(f'tensor {twice[0]!r} is in {file.name} and in another file of {path}')
    tensors |= part
  return config, tensors, files
