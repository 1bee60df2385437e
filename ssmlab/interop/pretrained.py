"""Published checkpoints: the authors' files to (model, parameters) and back."""

import dataclasses
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from ssmlab.core.config import UserError
from ssmlab.interop import bert, calm, files, gpt2, hyena, llama, mamba, mapping, modernbert, qwen, recurrentgemma, retnet, rwkv, rwkv7, xlstm
from ssmlab.interop.mapping import Arrays, Format
from ssmlab.models.encoder import Encoder
from ssmlab.models.lm import LM

FORMATS: dict[str, Format] = {
    'llama': llama.FORMAT, 'recurrentgemma': recurrentgemma.FORMAT, 'gated-deltanet': qwen.QWEN3_5, 'qwen3-next': qwen.QWEN3_NEXT,
    'retnet': retnet.FORMAT, 'rwkv7': rwkv7.FORMAT,
    'rwkv4-hf': rwkv.HF, 'rwkv4-pth': rwkv.V4, 'rwkv5': rwkv.V5, 'rwkv6': rwkv.V6,
    'mamba1': mamba.MAMBA1, 'mamba2': mamba.MAMBA2, 'mamba-ssm': mamba.OWN,
    'xlstm': xlstm.FORMAT,
    'hyena-lm': hyena.HYENA, 'h3-lm': hyena.H3_FORMAT,
    'calm-autoencoder': calm.AUTOENCODER, 'calm-lm': calm.FORMAT,
    'gpt2': gpt2.FORMAT, 'bert': bert.BERT, 'roberta': bert.ROBERTA, 'mosaicbert': bert.MOSAICBERT, 'modernbert': modernbert.FORMAT}

# Fields that say how training begins or how numbers are kept, and those that the tensors' shapes say anyway.
NO_MATTER = ('start', 'size', 'uniform', 'key_start', 'gate_variance', 'input_bias', 'cache_dtype', 'implementation', 'kv_heads', 'value_dim', 'rank_w', 'rank_a', 'rank_v', 'rank_g',
             'depth_scaled', 'dropout', 'embedding_dropout', 'mixer_dropout', 'channel_dropout', 'activations', 'remat',
             'rate', 'position_rate', 'window_rate', 'frequency', 'target', 'fast', 'slow', 'form', 'dt_min', 'dt_max', 'by_fft')


def load_pretrained(path: str | pathlib.Path, format: str | None = None) -> tuple[LM | Encoder, Any, dict[str, Any]]:
  """(model, params, info) of a published checkpoint.

  path: a folder with config.json and *.safetensors, *.bin or *.pth (sharded or not), or one such file.  No code from it is run.
  format: a name of FORMATS; None: recognised by config.json, key names and shapes.
  params: float32, whatever the file's precision.  info: format, config (as in the file), files, dtype (in the files), ignored (keys).
  Raises UserError for a missing file, an unknown format, and a tensor that is missing, unexpected or mis-shaped, which it names.
  """
  config, tensors, sources = files.read(path)
  name = _recognised(path, config, tensors) if format is None else format
  model, params, ignored = build(name, config or {}, tensors, str(path))
  kinds = sorted({str(array.dtype) for key, array in tensors.items() if key not in ignored})
  return model, params, dict(format=name, config=config or {}, files=[str(file) for file in sources], dtype=', '.join(kinds), ignored=ignored)


def _recognised(path, config: dict | None, tensors: Arrays) -> str:
  found = [name for name, form in FORMATS.items() if form.recognise(config, tensors)]
  if len(found) == 1:
    return found[0]
  said = f'model_type {config.get("model_type")!r}' if config else f'no config.json; first key {min(tensors, default=None)!r}'
  raise UserError(f'{path} is of no known format ({said}); formats: {", ".join(FORMATS)}')


def form_of(name: str) -> Format:
  """The format of that name, which may end in '-hf' as golden files name systems of transformers; UserError naming the allowed ones."""
  for known in (name, name.removesuffix('-hf')):
    if known in FORMATS:
      return FORMATS[known]
  raise UserError(f'unknown format {name!r}; formats: {", ".join(FORMATS)}')


def build(name: str, config: dict, tensors: Arrays, source: str) -> tuple[LM | Encoder, Any, list[str]]:
  """(model, params, ignored keys) from the authors' config and tensors.  source: what messages call them."""
  form = form_of(name)
  try:
    tensors = form.renamed(tensors)
    model = form.model(config, tensors)
    tree = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), model.shapes())
    rules = form.rules(model)
    if missed := mapping.uncovered(rules, model, tree):
      raise UserError(f'format {name} has no rule for {missed[0]}')
    used = mapping.fill(rules, model, tree, tensors)
    _check_constants(form.constants(model), tensors)
    ignored = _ignored(form, model, set(tensors) - used)
  except UserError as error:
    raise UserError(f'{source}: {error}') from error
  except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:     # a config of nonsense, refused by the model's own checks
    raise UserError(f'{source}: {name}: {" ".join(str(error).split())}') from error
  return model, jax.tree.map(jnp.asarray, tree), ignored


def _ignored(form: Format, model: LM | Encoder, left: set[str]) -> list[str]:
  """The keys left over, all of which must be known to hold nothing more."""
  known = set(form.constants(model)) | ({form.head} if model.head and model.head.tied else set())
  unexpected = sorted(key for key in left - known if not any(re.fullmatch(pattern, key) for pattern in form.ignored))
  if unexpected:
    more = f' (and {len(unexpected) - 1} more)' if unexpected[1:] else ''
    raise UserError(f'unexpected tensor {unexpected[0]!r}{more}')
  return sorted(left)


def _check_constants(ours: dict[str, np.ndarray], tensors: Arrays) -> None:
  for key, value in ours.items():
    if key not in tensors:
      continue
    loose = 1e-5 if tensors[key].dtype.itemsize >= 4 else 1e-2                     # bfloat16 keeps 8 bits
    if tensors[key].shape != value.shape or not np.allclose(np.asarray(tensors[key], np.float32), value, rtol=loose, atol=1e-7):
      raise UserError(f'tensor {key!r} differs from the constants that the model computes with')


def export(model: LM | Encoder, params, format: str) -> dict[str, np.ndarray]:
  """The authors' tensors, keys and layout, float32: bit for bit what was loaded."""
  form = form_of(format)
  rules = form.rules(model)
  if missed := mapping.uncovered(rules, model, params):
    raise UserError(f'format {format} has no place for {missed[0]}')
  return mapping.read(rules, model, params) | form.constants(model)


def save_pretrained(path: str | pathlib.Path, model: LM | Encoder, params, format: str, dtype: str = 'float32') -> None:
  """Writes a folder that `load_pretrained` and the authors' code read: model.safetensors and, where the format has one, config.json.

  dtype: 'float32' | 'bfloat16' | 'float16', of the file.  Raises UserError for a model that the format cannot express.
  """
  if dtype not in ('float32', 'bfloat16', 'float16'):
    raise UserError(f"dtype={dtype!r} is not one of 'float32', 'bfloat16', 'float16'")
  form, folder = form_of(format), pathlib.Path(path)
  tensors = export(model, params, format)
  config = form.config(model) if form.config else {}
  again = form.model(config, tensors)
  if type(again) is not type(model) or any(not _alike(getattr(again, name), getattr(model, name)) for name in _function(model)):
    raise UserError(f'format {format} cannot express this model; it would come back as {again}')
  folder.mkdir(parents=True, exist_ok=True)
  save_file({key: array.astype(jnp.dtype(dtype)) for key, array in tensors.items()}, folder / 'model.safetensors', metadata=dict(format='pt'))
  if form.config:
    (folder / 'config.json').write_text(json.dumps(config | dict(torch_dtype=dtype), indent=2) + '\n', encoding='utf-8')


def _function(model: LM | Encoder) -> list[str]:
  """The attributes that decide what the model computes; blocks say what pattern, depth and channel are written for."""
  return ['blocks', *(f.name for f in dataclasses.fields(model) if f.name not in ('pattern', 'depth', 'channel', *NO_MATTER))]


def _alike(one, other) -> bool:
  """Whether two configs compute the same function of parameters of the same shapes."""
  if dataclasses.is_dataclass(one) and type(one) is type(other):
    return all(_alike(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one) if f.name not in NO_MATTER)
  if isinstance(one, tuple) and isinstance(other, tuple):
    return len(one) == len(other) and all(map(_alike, one, other))
  return one == other
