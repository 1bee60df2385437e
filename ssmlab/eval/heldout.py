"""Held-out loss, perplexity and bits per byte."""

import dataclasses
import functools
import math

import jax
import numpy as np

from ssmlab.core import mesh as meshes
from ssmlab.core.config import UserError


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Means over the split's tokens, each document read from a fresh state.

  split: 'train', 'valid' or 'test'.  every: steps between evaluations; 0: only at the end.
  max_tokens: evaluate about so many tokens at the intervals (None: all); the end always takes all of them, unless final_max_tokens.
  """
  split: str = 'valid'
  every: int = 0
  max_tokens: int | None = None
  final_max_tokens: int | None = None

  def run(self, experiment, mesh, params, final: bool) -> dict[str, float]:
    """loss in nats per token, perplexity = exp(loss), accuracy, and bits_per_byte where the bytes behind the tokens are known.

    For a task without a likelihood: its loss and terms only, over what it counts.
    """
    limit = self.final_max_tokens if final else self.max_tokens
    data, sums, count, size = experiment.data, {}, 0.0, 0
    measure = _measure(experiment.model, experiment.task, mesh)
    for batch in data.eval_batches(self.split, limit, share(mesh, data.batch_size)):
      if data.targets_are == 'next tokens':                  # else not all of the text is predicted
        counted = np.array([data.count_bytes(row) for row in batch['targets']], np.int32)
        size += int(place(counted, mesh, data.batch_size).sum())
      batch_count, batch_sums = measure(params, place(batch, mesh, data.batch_size))
      count += float(batch_count)
      sums = {name: sums.get(name, 0.0) + float(value) for name, value in batch_sums.items()}
    if not count:
      raise UserError(f'nothing to predict in the {self.split} split: every document is shorter than what the task needs')
    result = {name: total / count for name, total in sums.items()}
    result |= dict(tokens=int(count))
    if not getattr(experiment.task, 'likelihood', True):     # a loss that is no nats has neither of the two below
      return result
    result |= dict(perplexity=math.exp(min(result['loss'], 700.0)))
    return result | (dict(bits_per_byte=sums['loss'] / math.log(2) / size) if size else {})


@functools.lru_cache(maxsize=16)
def share(mesh, size: int) -> np.ndarray:
  """Rows of a batch of `size` that this host's devices hold, ascending: where tensor or sequence shards lie on several hosts, they read the same rows."""
  held = meshes.batch_sharding(mesh, (size,)).addressable_devices_indices_map((size,))
  return np.unique(np.concatenate([np.arange(size)[rows] for rows, in held.values()]))


def place(batch, mesh, size: int | None = None):
  """Host arrays -> one global array each, sharded over batch and time.

  size: rows of the whole batch, of which the arrays have those of `share`; None: they have all.
  """
  def put(x):
    rows = np.arange(len(x)) if size is None else share(mesh, size)
    shape = (len(x) if size is None else size, *x.shape[1:])

    def piece(index):
      wanted = np.arange(shape[0])[index[0]]
      return x[(slice(*np.searchsorted(rows, (wanted[0], wanted[-1] + 1))), *index[1:])]
    return jax.make_array_from_callback(shape, meshes.batch_sharding(mesh, shape), piece)
  return jax.tree.map(put, batch)


@functools.lru_cache(maxsize=8)
def _measure(model, task, mesh):
  """(params, batch) -> (count, sums), compiled once per model."""
  measured = getattr(task, 'held_out', task.loss)            # a task may measure another thing than it trains on
  evaluate = jax.jit(lambda params, batch: measured(model, params, batch, jax.random.key(0))[1])

  def run(params, batch):
    with meshes.use(mesh):
      return evaluate(params, batch)
  return run
