"""First values from another run: what fine-tuning begins with, and the frozen part of a network of two stages."""

import dataclasses
import pathlib

import jax

from ssmlab.core.config import UserError
from ssmlab.train import workdir


def taken_over(params, found, source: str):
  """`params` with the arrays of `found` wherever the path is in both; (params, paths that stay as they were drawn).

  Raises UserError for an array of another shape, and where nothing is in both.
  """
  theirs = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found)}
  fresh, used = [], 0

  def one(path, mine):
    nonlocal used
    other = theirs.get(jax.tree_util.keystr(path))
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if other is None:
      fresh.append(name)
      return mine
    if other.shape != mine.shape:
      raise UserError(f'train.start={source}: {name} has shape {other.shape} there and {mine.shape} here')
    used += 1
    return jax.device_put(other, mine.sharding)
  params = jax.tree_util.tree_map_with_path(one, params)
  if not used:
    raise UserError(f'train.start={source}: no parameter of that run is in this model')
  return params, fresh


def from_workdir(params, path: str):
  """As `taken_over`, from the last checkpoint of a workdir."""
  return taken_over(params, workdir.load(pathlib.Path(path))[1], path)


def part_from_workdir(params, path: str, name: str, experiment):
  """`params` with the whole model of a workdir's last checkpoint as its part `name`; (params, []).

  experiment: the one that begins.  Raises UserError for a workdir that is missing or has no checkpoint, and where its model or its tokenizer is
  not the one that the experiment says, naming what differs.
  """
  said = f'train.start={path}'
  found, theirs, _ = workdir.load(pathlib.Path(path))
  wanted = getattr(experiment.model, name)
  if type(found.model) is not type(wanted):
    raise UserError(f'{said} holds a {type(found.model).__name__}, but model.{name} is a {type(wanted).__name__}')
  for field in (f.name for f in dataclasses.fields(wanted) if f.name not in ('activations', 'dropout')):
    there, here = getattr(found.model, field), getattr(wanted, field)
    if there != here:
      raise UserError(f'{said} does not fit: {field} is {there!r} there and model.{name}.{field} is {here!r} here')
  there, here = found.data.tokenizer, experiment.data.tokenizer
  if there != here and there.pieces() != here.pieces():
    raise UserError(f'{said} does not fit: it was trained with {there}, data.tokenizer is {here} here')
  return params | {name: jax.tree.map(lambda mine, other: jax.device_put(other, mine.sharding), params[name], theirs)}, []
