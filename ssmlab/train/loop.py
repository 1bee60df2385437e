"""The one training loop: build, restore, step, log, evaluate, save."""

import contextlib
import json
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np

from ssmlab.core import mesh as meshes
from ssmlab.core.config import UserError
from ssmlab.eval.heldout import place, share
from ssmlab.models.calm import CALM, cost
from ssmlab.train import diagnose, hosts, metrics, workdir
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

  On several hosts all call it, and host 0 writes.  Raises UserError for what the user can mend; Stopped after SIGTERM.
  """
  with contextlib.ExitStack() as opened, hosts.together():
    experiment.check(jax.device_count())
    path = workdir.prepare(experiment, pathlib.Path(directory))
    mesh = meshes.make(experiment.mesh)
    pieces = trainer(experiment, mesh)
    checkpoints = opened.enter_context(_closed(Checkpoints(path, experiment.train.keep)))
    hosts.watch(path)
    start, record, fresh = checkpoints.latest(), dict(seconds=0.0, tokens=0), []
    hosts.agree('last checkpoint', str(start))
    if start is None:
      start, state = 0, pieces.fresh(experiment.train.seed)
      if experiment.train.start:
        source, part = experiment.train.start, experiment.train.start_at
        params, fresh = part_from_workdir(state.params, source, part, experiment) if part else from_workdir(state.params, source)
        state = state.replace(params=params)
    else:
      state, record = checkpoints.restore(like(jax.eval_shape(pieces.fresh, 0), pieces.shardings()), start)
    recorder = opened.enter_context(_closed(
        metrics.Recorder(path, start, experiment.train.steps, experiment.train.wandb, quiet) if hosts.lead() else metrics.Silent()))
    begin = f'resumed at step {start} of' if start else 'compiling;'
    where = f' on {jax.process_count()} hosts' if jax.process_count() > 1 else ''
    recorder.say(f'{experiment.model.size():,} parameters on {mesh.size} x {mesh.devices.flat[0].device_kind}{where}; {begin} {experiment.train.steps:,} steps '
                 f'of {experiment.data.batch_size} x {experiment.data.length} tokens, in {path}')
    if fresh:
      recorder.say(f'not in {experiment.train.start}, drawn afresh: {", ".join(fresh)}')
    if hasattr(experiment.model, 'autoencoder') and not experiment.train.start_at:
      recorder.say('the autoencoder is drawn at random and stays so: name its workdir in train.start, and train.start_at=autoencoder')
    loop = _Loop(experiment, path, mesh, checkpoints, recorder, record)
    summary = loop.finish(loop.train(pieces.compiled(), state, start))
  hosts.wait('end')
  return summary


@contextlib.contextmanager
def _closed(part):
  """Closes it at the end; what went wrong first is what is reported."""
  try:
    yield part
  except BaseException:
    with contextlib.suppress(Exception):
      part.close()
    raise
  part.close()


class _Loop:
  """State of one attempt that is not part of the model's: clocks and counters."""

  def __init__(self, experiment, path, mesh, checkpoints, recorder, record):
    self.experiment, self.path, self.mesh = experiment, path, mesh
    self.checkpoints, self.recorder, self.results = checkpoints, recorder, {}
    self.clock, self.tokens = metrics.Clock(record['seconds']), record['tokens']
    self.saved, self.tracing = None, False
    data = experiment.data
    self.step_tokens = data.batch_size * data.length
    self.step_flops = 3 * experiment.flops() * self.step_tokens

  def train(self, step, state, start: int):
    """Runs the remaining steps; step n + 1 is dispatched before the numbers of step n are read."""
    train, pending = self.experiment.train, None
    self.saved = start or None
    size = self.experiment.data.batch_size
    batches = self.experiment.data.train_batches(start, share(self.mesh, size))
    self.last = (time.monotonic(), self.tokens)
    with hosts.preemption() as preempted, self._trace():
      for number in range(start + 1, train.steps + 1):
        self._profile(number)
        batch = place(next(batches), self.mesh, size)
        state, measured = step(state, batch)
        self._read(pending, state)
        pending = (number, measured, batch)
        due = [(name, e) for name, e in self.experiment.evals if e.every and number % e.every == 0 and number < train.steps]
        save = train.checkpoint_every and number % train.checkpoint_every == 0
        stop = preempted(number)
        if due or save or stop or number == train.steps:
          self._read(pending, state)
          pending = None
          self._evaluate(state, due, number, final=False)
          if save or stop:
            self._save(state, number)
          if stop:
            self._stop(number)
    return state

  @contextlib.contextmanager
  def _trace(self):
    """A trace that is being written when the steps end is closed."""
    try:
      yield
    finally:
      if self.tracing:
        jax.profiler.stop_trace()

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
                   flops=3 * self.experiment.flops() * self.tokens, parameters=model.size(),
                   state_bytes=model.state_bytes(self.experiment.data.length))
    if isinstance(model, CALM):
      summary |= {f'FLOPs, {what}': flops for what, flops in cost.report(model, self.experiment.data.length, self.tokens)}
    summary = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in summary.items()}
    if hosts.lead():
      workdir.write(self.path / 'summary.json', json.dumps(summary, indent=1))
    return summary
