"""The one training loop: build, restore, step, log, evaluate, save."""

import contextlib
import json
import math
import pathlib
import signal
import time
from typing import Any

import jax
import numpy as np

from ssmlab.core import mesh as meshes
from ssmlab.core.config import UserError
from ssmlab.eval.heldout import place
from ssmlab.models.calm import CALM, cost
from ssmlab.train import diagnose, metrics, workdir
from ssmlab.train.checkpoint import Checkpoints, like
from ssmlab.train.experiment import Experiment
from ssmlab.train.start import from_workdir, part_from_workdir
from ssmlab.train.step import Trainer


class Stopped(SystemExit):
  """SIGTERM arrived; everything is saved.  Exit status 143, as the shell has it for a process ended by SIGTERM."""


def trainer(experiment: Experiment, mesh) -> Trainer:
  """The compiled pieces of the experiment on a mesh."""
  tx = experiment.optim.transform(experiment.model.params(), experiment.train.steps)
  return Trainer(experiment.model, experiment.task, tx, mesh, experiment.optim.schedule(experiment.train.steps), experiment.train.accumulate)


def run(experiment: Experiment, directory: str | pathlib.Path, *, quiet: bool = False) -> dict[str, Any]:
  """Trains in a workdir, from its last checkpoint if it has one, and returns the summary (also summary.json).

  Raises UserError for what the user can mend; Stopped after SIGTERM.
  """
  experiment.check(jax.device_count())
  path = workdir.prepare(experiment, pathlib.Path(directory))
  mesh = meshes.make(experiment.mesh)
  pieces = trainer(experiment, mesh)
  checkpoints = Checkpoints(path, experiment.train.keep)
  start, record, fresh = checkpoints.latest(), dict(seconds=0.0, tokens=0), []
  if start is None:
    start, state = 0, pieces.fresh(experiment.train.seed)
    if experiment.train.start:
      source, part = experiment.train.start, experiment.train.start_at
      params, fresh = part_from_workdir(state.params, source, part, experiment) if part else from_workdir(state.params, source)
      state = state.replace(params=params)
  else:
    state, record = checkpoints.restore(like(jax.eval_shape(pieces.fresh, 0), pieces.shardings()), start)
  recorder = metrics.Recorder(path, start, experiment.train.steps, experiment.train.wandb, quiet or jax.process_index() > 0)
  begin = f'resumed at step {start} of' if start else 'compiling;'
  recorder.say(f'{experiment.model.size():,} parameters on {mesh.size} x {mesh.devices.flat[0].device_kind}; {begin} {experiment.train.steps:,} steps '
               f'of {experiment.data.batch_size} x {experiment.data.length} tokens, in {path}')
  if fresh:
    recorder.say(f'not in {experiment.train.start}, drawn afresh: {", ".join(fresh)}')
  if hasattr(experiment.model, 'autoencoder') and not experiment.train.start_at:
    recorder.say('the autoencoder is drawn at random and stays so: name its workdir in train.start, and train.start_at=autoencoder')
  loop = _Loop(experiment, path, mesh, checkpoints, recorder, record)
  try:
    summary = loop.finish(loop.train(pieces.compiled(), state, start))
  except BaseException:
    for part in (recorder, checkpoints):                     # what went wrong first is what is reported
      with contextlib.suppress(Exception):
        part.close()
    raise
  recorder.close()
  checkpoints.close()
  return summary


class _Loop:
  """State of one attempt that is not part of the model's: clocks, counters, the signal flag."""

  def __init__(self, experiment, path, mesh, checkpoints, recorder, record):
    self.experiment, self.path, self.mesh = experiment, path, mesh
    self.checkpoints, self.recorder, self.results = checkpoints, recorder, {}
    self.clock, self.tokens = metrics.Clock(record['seconds']), record['tokens']
    self.saved, self.stopping, self.tracing = None, False, False
    data = experiment.data
    self.step_tokens = data.batch_size * data.length
    self.step_flops = 3 * experiment.model.flops(data.length) * self.step_tokens

  def train(self, step, state, start: int):
    """Runs the remaining steps; step n + 1 is dispatched before the numbers of step n are read."""
    train, pending = self.experiment.train, None
    self.saved = start or None
    batches = self.experiment.data.train_batches(start, jax.process_index(), jax.process_count())
    before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, 'stopping', True))
    self.last = (time.monotonic(), self.tokens)
    try:
      for number in range(start + 1, train.steps + 1):
        self._profile(number)
        batch = place(next(batches), self.mesh)
        state, measured = step(state, batch)
        self._read(pending, state)
        pending = (number, measured, batch)
        due = [(name, e) for name, e in self.experiment.evals if e.every and number % e.every == 0 and number < train.steps]
        save = train.checkpoint_every and number % train.checkpoint_every == 0
        if due or save or self.stopping or number == train.steps:
          self._read(pending, state)
          pending = None
          self._evaluate(state, due, number, final=False)
          if save or self.stopping:
            self._save(state, number)
          if self.stopping:
            self._stop(number)
    finally:
      signal.signal(signal.SIGTERM, before)
      if self.tracing:
        jax.profiler.stop_trace()
    return state

  def _read(self, pending, state) -> None:
    """Waits for a step's numbers, logs them, and stops the run if they are not finite."""
    if pending is None:
      return
    number, measured, batch = pending
    measured = {name: np.asarray(value).item() for name, value in measured.items()}
    if not measured.pop('finite'):
      where = diagnose.first_non_finite(self.experiment, state.params, batch, self.mesh)
      kept = f'the checkpoint of step {self.saved} is kept' if self.saved else 'there was no checkpoint yet'
      raise UserError(f'step {number}: loss {measured["loss"]}, gradient norm {measured["grad_norm"]}: not finite, first in {where}; {kept}')
    self.tokens += int(measured.pop('targets'))
    steps = self.experiment.train.steps
    if number % self.experiment.train.log_every and number not in (1, steps):
      return
    now, (then, tokens) = time.monotonic(), self.last
    rate = (self.tokens - tokens) / max(now - then, 1e-9)
    self.last = (now, self.tokens)
    flops = rate * self.step_flops / self.step_tokens
    row = {f'train/{name}' if name in ('loss', 'accuracy') else name: value for name, value in measured.items()}
    self.recorder.log(dict(step=number, tokens=self.tokens, seconds=self.clock(), tokens_per_second=rate, flops_per_second=flops, **row))
    left = (steps - number) * self.step_tokens / max(rate, 1e-9)
    self.recorder.progress(number, measured['loss'], rate, flops, workdir.peak_flops(), left)

  def _evaluate(self, state, evaluators, number: int, final: bool) -> None:
    began = time.monotonic()
    for name, evaluator in evaluators:
      found = {f'{name}/{key}': value for key, value in evaluator.run(self.experiment, self.mesh, state.params, final).items()}
      numbers = {key: value for key, value in found.items() if not isinstance(value, str)}
      self.results.update(found)
      if numbers:
        self.recorder.log(dict(step=number, tokens=self.tokens, **numbers))
        self.recorder.say(f'step {number}  ' + '  '.join(f'{key} {value:,.4f}' if isinstance(value, float) else f'{key} {value:,}' for key, value in numbers.items()))
      for key, value in found.items():
        if isinstance(value, str):
          self.recorder.say(f'{key}:\n{value}\n')
    self.last = (self.last[0] + time.monotonic() - began, self.last[1])          # evaluation is not training time

  def _save(self, state, number: int) -> None:
    if self.saved == number:
      return
    if self.results or self.saved is not None:
      self.checkpoints.wait()
    self.checkpoints.save(state, number, dict(seconds=self.clock(), tokens=self.tokens), self.results)
    self.saved = number

  def _stop(self, number: int) -> None:
    self.checkpoints.wait()
    self.recorder.say(f'SIGTERM: saved at step {number} in {self.path}; the same command goes on from there')
    raise Stopped(143)

  def _profile(self, number: int) -> None:
    if self.experiment.train.profile:
      first, last = self.experiment.train.profile
      if number == first:
        jax.profiler.start_trace(str(self.path / 'profile'))
        self.tracing = True
      if number == last + 1 and self.tracing:
        jax.profiler.stop_trace()
        self.tracing = False

  def finish(self, state) -> dict[str, Any]:
    """The last evaluation, the last checkpoint and the summary."""
    steps, model = self.experiment.train.steps, self.experiment.model
    seconds = self.clock()
    self._evaluate(state, self.experiment.evals, steps, final=True)
    self._save(state, steps)
    self.checkpoints.wait()
    summary = dict(self.results, steps=steps, tokens=self.tokens, seconds=seconds, seconds_with_evaluation=self.clock(),
                   flops=3 * model.flops(self.experiment.data.length) * self.tokens, parameters=model.size(),
                   state_bytes=model.state_bytes(self.experiment.data.length))
    if isinstance(model, CALM):
      summary |= {f'FLOPs, {what}': flops for what, flops in cost.report(model, self.experiment.data.length, self.tokens)}
    summary = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in summary.items()}
    workdir.write(self.path / 'summary.json', json.dumps(summary, indent=1))
    return summary
