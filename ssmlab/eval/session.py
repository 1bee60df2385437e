"""A session as a file: the state between two calls of `generate`, and what it belongs to."""

import json
import os
import pathlib

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ssmlab.core.config import UserError

VERSION = 1


def _names(model, tokenizer) -> dict[str, str]:
  return dict(model=repr(model), tokenizer='' if tokenizer is None else tokenizer.fingerprint())


def save_state(path, state, *, model, tokenizer=None) -> None:
  """Writes a state with the model's config and the tokenizer's fingerprint; the file appears whole or not at all.

  state: as `generate` or `model.apply` returned it.  Raises UserError where it cannot be written.
  """
  flat = traverse_util.flatten_dict(state, keep_empty_nodes=True, sep='/')
  empty = [name for name, leaf in flat.items() if leaf is traverse_util.empty_node]          # parts that carry nothing
  arrays = {name: np.asarray(leaf) for name, leaf in flat.items() if name not in empty}
  header = dict(_names(model, tokenizer), version=str(VERSION), format='ssmlab session', empty=json.dumps(empty))
  half = pathlib.Path(f'{path}.tmp')
  try:
    save_file(arrays, half, metadata=header)
    os.replace(half, path)
  except (OSError, SafetensorError) as error:
    half.unlink(missing_ok=True)
    raise UserError(f'session {path} could not be written: {error}') from error


def load_state(path, *, model=None, tokenizer=None):
  """The state of a session file, as arrays on the default device.

  model, tokenizer: if given, a session of another one is refused.  Raises UserError for a file that is missing, is no session, has
  another version, or belongs to another model or tokenizer.
  """
  try:
    with safe_open(path, framework='numpy') as file:
      header = file.metadata() or {}
      flat = {name: file.get_tensor(name) for name in file.keys()}
  except (OSError, SafetensorError) as error:
    raise UserError(f'session {path} cannot be read: {error}') from error
  if header.get('format') != 'ssmlab session':
    raise UserError(f'{path} is not a session file')
  if header.get('version') != str(VERSION):
    raise UserError(f'session {path} has version {header.get("version")}; this is version {VERSION}')
  for name, mine in _names(model, tokenizer).items():
    given = dict(model=model, tokenizer=tokenizer)[name]
    if given is not None and header[name] != mine:
      raise UserError(f'session {path} belongs to another {name}: {json.dumps(_difference(header[name], mine))}')
  empty = {name: traverse_util.empty_node for name in json.loads(header['empty'])}
  return jax.tree.map(jax.numpy.asarray, traverse_util.unflatten_dict(flat | empty, sep='/'))


def _difference(theirs: str, mine: str) -> str:
  """The surroundings of the first character that differs."""
  at = next((i for i, (a, b) in enumerate(zip(theirs, mine)) if a != b), min(len(theirs), len(mine)))
  begin = max(at - 30, 0)
  return f'...{theirs[begin:at + 30]}... in the file, ...{mine[begin:at + 30]}... here'
