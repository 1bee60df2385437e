"""First values from another run: what fine-tuning begins with."""

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
