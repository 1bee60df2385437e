"""Configs are frozen dataclasses of numbers, strings, tuples and other configs; this module changes, checks and writes them.

`override(config, 'model.pattern.0.inner', 64)` is what an experiment uses, `parse(config, ['optim.peak_lr=3e-4'])` what the command line
uses, `dump(config)` what the workdir keeps: valid Python whose `config()` returns the same object.
"""

import ast
import dataclasses
import difflib
import types
import typing
from typing import Any, Iterable


class UserError(Exception):
  """Something the user asked for cannot be done.  The message is one line; the command line prints it and exits with 2."""


def _names(node) -> list[str]:
  if dataclasses.is_dataclass(node):
    return [f.name for f in dataclasses.fields(node)]
  return [str(i) for i in range(len(node))] if isinstance(node, tuple) else []


def paths(config, prefix: str = '') -> list[str]:
  """Every dotted path to a value that is not itself a config."""
  found = []
  for name in _names(config):
    child = getattr(config, name) if dataclasses.is_dataclass(config) else config[int(name)]
    below = paths(child, f'{prefix}{name}.')
    found += below or [f'{prefix}{name}']
  return found


def _step(node, name: str, path: str, root) -> Any:
  if name in _names(node):
    return getattr(node, name) if dataclasses.is_dataclass(node) else node[int(name)]
  near = difflib.get_close_matches(path, paths(root), n=3, cutoff=0.5)
  allowed = ', '.join(_names(node)) or f'nothing below a {type(node).__name__}'
  hint = f'; did you mean {" or ".join(near)}?' if near else ''
  raise UserError(f'unknown field {path!r}: {name!r} is not one of {allowed}{hint}')


def get(config, path: str) -> Any:
  """The value at a dotted path; digits index tuples."""
  node = config
  for name in path.split('.'):
    node = _step(node, name, path, config)
  return node


def override(config, path: str, value: Any) -> Any:
  """A copy of the config with the value at the dotted path replaced.

  Raises UserError for an unknown path (with the nearest ones) and for a value of another type than the field's.
  """
  def replace(node, names):
    name, rest = names[0], names[1:]
    child = _step(node, name, path, config)
    if rest:
      new = replace(child, rest)
    else:
      new = _check(value, _annotation(node, name), child, path)
    try:
      if dataclasses.is_dataclass(node):
        return dataclasses.replace(node, **{name: new})
      return (*node[:int(name)], new, *node[int(name) + 1:])
    except ValueError as error:
      raise UserError(f'{path}={value!r}: {error}') from error
  return replace(config, path.split('.'))


def _annotation(node, name: str) -> Any:
  if not dataclasses.is_dataclass(node):
    return None
  return typing.get_type_hints(type(node)).get(name)


def _check(value, annotation, old, path: str) -> Any:
  """The value as the field's type: int widens to float, list to tuple, a config may replace a config; nothing else changes type."""
  allowed = _types(annotation) or ((type(old),) if old is not None else ())
  if not allowed or object in allowed or isinstance(value, bool) and bool in allowed:
    return value
  if isinstance(value, list) and tuple in allowed:
    return tuple(value)
  if isinstance(value, int) and not isinstance(value, bool) and float in allowed and int not in allowed:
    return float(value)
  is_config = dataclasses.is_dataclass(value) and any(dataclasses.is_dataclass(t) for t in (*allowed, type(old)))
  if is_config or isinstance(value, allowed) and not (isinstance(value, bool) and bool not in allowed):
    return value
  names = ' or '.join('None' if t is types.NoneType else t.__name__ for t in allowed)
  raise UserError(f'{path}={value!r} is of type {type(value).__name__}, but the field takes {names} (now {old!r})')


def _types(annotation) -> tuple[type, ...]:
  """Concrete types of an annotation; empty where it says nothing useful."""
  if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
    return tuple(t for part in typing.get_args(annotation) for t in _types(part))
  origin = typing.get_origin(annotation)
  if origin is typing.Literal:
    return tuple({type(v) for v in typing.get_args(annotation)})
  kind = origin or annotation
  return (kind,) if isinstance(kind, type) else ()


def parse(config, assignments: Iterable[str]) -> Any:
  """Applies 'path=value' texts, in order.  Values are Python literals; what is not one is a string where the field takes strings."""
  for text in assignments:
    path, equals, raw = text.partition('=')
    if not equals:
      raise UserError(f'{text!r} is not of the form path.to.field=value')
    config = override(config, path.strip(), _literal(raw.strip(), config, path.strip()))
  return config


def _literal(raw: str, config, path: str) -> Any:
  old = get(config, path)
  parent, _, name = path.rpartition('.')
  allowed = _types(_annotation(get(config, parent) if parent else config, name)) or (type(old),)
  if str in allowed and not (raw == 'None' and types.NoneType in allowed):
    return raw[1:-1] if len(raw) > 1 and raw[0] == raw[-1] and raw[0] in '\'"' else raw
  try:
    value = ast.literal_eval({'true': 'True', 'false': 'False', 'none': 'None'}.get(raw, raw))
  except (ValueError, SyntaxError):
    value = raw
  whole = isinstance(value, float) and value.is_integer() and int in allowed and float not in allowed
  return int(value) if whole else value                                  # steps=1e4 is a whole number


def dump(config, imports: dict[str, str] | None = None) -> str:
  """The config as a Python module: imports, then config() returning its repr, a field a line.

  imports: other module names to write, {module as imported now: module as it can be imported later}.
  """
  classes: dict[str, set[str]] = {}

  def collect(node):
    if dataclasses.is_dataclass(node):
      module = (imports or {}).get(type(node).__module__, type(node).__module__)
      classes.setdefault(module, set()).add(type(node).__qualname__)
      for field in dataclasses.fields(node):
        collect(getattr(node, field.name))
    elif isinstance(node, tuple):
      for child in node:
        collect(child)
  collect(config)
  lines = [f'from {module} import {", ".join(sorted(names))}' for module, names in sorted(classes.items())]
  return '\n'.join(lines) + f'\n\n\ndef config():\n  return {_pretty(config, 2)}\n'


def _pretty(node, indent: int) -> str:
  inside = ' ' * (indent + 4)
  if dataclasses.is_dataclass(node):
    parts = [f'{f.name}={_pretty(getattr(node, f.name), indent + 4)}' for f in dataclasses.fields(node) if f.init]
    short = f'{type(node).__qualname__}({", ".join(parts)})'
  elif isinstance(node, tuple):
    parts = [_pretty(child, indent + 4) for child in node]
    short = f'({", ".join(parts)}{"," if len(parts) == 1 else ""})'
  else:
    return repr(node)
  if len(short) + indent <= 120 and '\n' not in short:
    return short
  opening = f'{type(node).__qualname__}(' if dataclasses.is_dataclass(node) else '('
  return opening + ''.join(f'\n{inside}{part},' for part in parts) + '\n' + ' ' * indent + ')'
