"""Checkpoints: complete or not there.  Orbax writes them in the background; this module says what goes in and what errors mean."""

import pathlib
import warnings
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from ssmlab.core.config import UserError
from ssmlab.train.step import TrainState

VERSION = 1


class Checkpoints:
  """The checkpoints of one workdir.

  keep: newest ones kept; the one with the lowest `best` among those saved with that metric is kept besides.
  """

  def __init__(self, workdir: pathlib.Path, keep: int = 1, best: str = 'valid/loss'):
    self.directory = (workdir / 'checkpoints').resolve()
    kept = [policies.LatestN(keep), policies.BestN(get_metric_fn=lambda m: m[best], reverse=True, n=1, keep_checkpoints_without_metrics=False)]
    options = ocp.CheckpointManagerOptions(preservation_policy=policies.AnyPreservationPolicy(kept), cleanup_tmp_directories=True)
    self._best = best
    self._manager = ocp.CheckpointManager(self.directory, options=options)

  def latest(self) -> int | None:
    """Step of the newest complete checkpoint."""
    self._manager.reload()                                   # after a failed write its own list is wrong
    return self._manager.latest_step()

  def save(self, state: TrainState, step: int, record: dict[str, Any], metrics: dict[str, float]) -> None:
    """Starts writing; returns before it is done.  record: small facts (JSON) restored with the state."""
    metrics = {self._best: float(metrics[self._best])} if self._best in metrics else None
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(dict(record, version=VERSION)))
    self._guard(lambda: self._manager.save(step, args=items, metrics=metrics, force=True), step)

  def wait(self) -> None:
    """Returns when what was started is on disk."""
    self._guard(self._manager.wait_until_finished, None)

  def close(self) -> None:
    self._guard(self._manager.close, None)

  def restore(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
    """The state laid out as `like` (ShapeDtypeStructs with shardings), and the record."""
    record = self.record(step)
    try:
      items = ocp.args.Composite(state=ocp.args.StandardRestore(like))
      return self._manager.restore(step, args=items).state, record
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f'{self.directory}/{step} is not a checkpoint of this model: {_first_line(error)}') from error

  def record(self, step: int) -> dict[str, Any]:
    record = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
    if record.get('version') != VERSION:
      raise UserError(f'{self.directory}/{step} was written by version {record.get("version")} of the checkpoint format; this is version {VERSION}')
    return record

  def _guard(self, action, step: int | None) -> None:
    """Runs it; a failed write becomes one line.  Complete checkpoints are untouched by a failure: Orbax renames last."""
    try:
      action()
    except Exception as error:                               # Orbax and TensorStore raise many kinds for a full disk
      warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)          # what Orbax leaves behind it, now or at exit
      complete = self.latest()
      state = f'the last complete one is step {complete}' if complete is not None else 'there is no complete one yet'
      at = '' if step is None else f' of step {step}'
      raise UserError(f'checkpoint{at} could not be written to {self.directory}: {_first_line(error)}; {state}') from error


def _first_line(error: BaseException) -> str:
  """What went wrong, in a few words: TensorStore wraps the system's reason in a page of paths, which it ends with."""
  text = (str(error).strip() or type(error).__name__).splitlines()[0]
  text = text.split(' [tensorstore_spec')[0].split(' [os_error_code')[0]
  return text if len(text) < 200 else text.rsplit(': ', 1)[-1][-200:]


def like(state_shapes: TrainState, shardings: TrainState) -> TrainState:
  """Shapes with shardings, as `restore` wants them."""
  return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), state_shapes, shardings)
