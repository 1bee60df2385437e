"""Fields of other people's configs: required, or one of what we can compute; anything else is an error that names the field."""

import math
from typing import Any

import ml_dtypes
import numpy as np

from ssmlab.core.config import UserError

ACTIVATIONS = {'silu': 'silu', 'swish': 'silu', 'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh',
               'relu': 'relu', 'relu2': 'relu_squared'}


def need(config: dict, name: str) -> Any:
  """The field's value; UserError where there is none."""
  if config.get(name) is None:
    raise UserError(f'the config does not say {name!r}; a config.json beside the tensors is needed')
  return config[name]


def only(config: dict, name: str, default: Any, *allowed: Any) -> Any:
  """The field's value, one of `allowed` or the default."""
  value = config.get(name, default)
  if value != default and value not in allowed:
    raise UserError(f'config: {name}={value!r} is not supported; allowed: {", ".join(map(repr, dict.fromkeys((default, *allowed))))}')
  return value


def activation(config: dict, name: str, default: str) -> str:
  """Our name of an activation."""
  return ACTIVATIONS[only(config, name, default, *ACTIVATIONS)]


def activation_name(ours: str) -> str:
  """transformers' name of one of our activations."""
  return next(name for name in ('silu', 'gelu', 'gelu_pytorch_tanh', 'relu', 'relu2') if ACTIVATIONS[name] == ours)


def rope(config: dict, theta: float = 10000.0, fraction: float = 1.0) -> tuple[float, float]:
  """(theta, share of the head that is rotated) from transformers' fields, those before version 5 (rope_theta, rope_scaling) or since.

  Raises UserError where the wavelengths are rescaled.
  """
  fields = {}
  for said in (config.get('rope_scaling') or {}, config.get('rope_parameters') or {}):
    kind = said.get('rope_type', said.get('type', 'default'))
    if kind != 'default':
      raise UserError(f"config: rotary scaling {kind!r} is not supported; allowed: 'default'")
    fields |= said
  read = lambda name, default: float(fields.get(name, config.get(name)) or default)
  return read('rope_theta', theta), read('partial_rotary_factor', fraction)


def tied(config: dict, tensors, default: bool, table: str, head: str) -> bool:
  """Whether the head is the embedding: the config says so (or, where it is silent, the head is absent) and the file does not differ."""
  says = config.get('tie_word_embeddings')
  if says is None:
    says = default or head not in tensors
  same = head not in tensors or table in tensors and np.array_equal(tensors[head], tensors[table])
  return bool(says) and same


def bfloat16_sqrt(width: int) -> float:
  """sqrt(width) rounded to bfloat16, by which Gemma's embeddings are multiplied whatever the dtype."""
  return float(np.asarray(math.sqrt(width), ml_dtypes.bfloat16))


def period(kinds: list[str]) -> int:
  """Length of the shortest pattern that, repeated and cut, gives the list."""
  return next(p for p in range(1, len(kinds) + 1) if all(kind == kinds[i % p] for i, kind in enumerate(kinds)))
