"""The experiment: one frozen value that says everything a run needs."""

import dataclasses
import pathlib
from typing import Any

from ssmlab.core.config import UserError, override
from ssmlab.core.mesh import MeshConfig
from ssmlab.data import Data
from ssmlab.eval.heldout import HeldOut
from ssmlab.models import LM, Autoencoder, Encoder
from ssmlab.tasks import NextToken
from ssmlab.train.optimizer import AdamW


@dataclasses.dataclass(frozen=True)
class Train:
  """How long, how often, and what is written down.

  steps: optimiser steps.  seed: of the initial values.  accumulate: micro-batches per step.
  log_every: steps between lines of metrics.jsonl.
  checkpoint_every: steps between checkpoints; 0: one at the end (and on SIGTERM).  keep: newest checkpoints kept, besides the best.
  profile: (first, last) steps to trace into the workdir's profile/; empty: none.
  start: workdir whose last parameters are the first values here, where both models have them (fine-tuning); '': none.
  start_at: part of this model that the workdir's whole model becomes, e.g. 'autoencoder' (CALM); '': the two models are of one shape.
  wandb: project of Weights & Biases to log to as well, if that package is installed; '': none.
  """
  steps: int = 1000
  seed: int = 0
  accumulate: int = 1
  log_every: int = 10
  checkpoint_every: int = 500
  keep: int = 1
  profile: tuple[int, ...] = ()
  start: str = ''
  start_at: str = ''
  wandb: str = ''

  def __post_init__(self):
    for name, least in (('steps', 1), ('accumulate', 1), ('log_every', 1), ('checkpoint_every', 0), ('keep', 1)):
      if getattr(self, name) < least:
        raise ValueError(f'train.{name}={getattr(self, name)} must be at least {least}')
    if self.profile and (len(self.profile) != 2 or self.profile[0] > self.profile[1]):
      raise ValueError(f'train.profile={self.profile} must be (first, last) or empty')
    if self.start_at and not self.start:
      raise ValueError(f'train.start_at={self.start_at!r} needs train.start: the workdir of that part')


@dataclasses.dataclass(frozen=True)
class Experiment:
  """model on data by task with optim, on mesh; evals: (name, evaluator) pairs, run at their own intervals and at the end."""
  model: LM | Encoder | Autoencoder
  data: Data = Data()
  task: Any = NextToken()
  optim: AdamW = AdamW()
  train: Train = Train()
  mesh: MeshConfig = MeshConfig()
  evals: tuple[tuple[str, Any], ...] = (('valid', HeldOut()),)

  def flops(self) -> float:
    """Forward FLOPs per token of a training step, with the head on the tokens that the task predicts: of masked words a part, of classes none."""
    predicted = getattr(self.task, 'predicted', None)
    return self.model.flops(self.data.length, predicted(self.data.length)) if predicted else self.model.flops(self.data.length)

  def check(self, devices: int) -> None:
    """Raises UserError for what no part can see alone: batch against mesh and micro-batches, vocabulary against tokenizer."""
    self.check_shapes(devices)
    self.data.check(self.model.vocab)

  def check_shapes(self, devices: int) -> None:
    """What of `check` needs no file: a plan is made where the data are not."""
    data, fsdp, _, sequence = self.mesh.sizes(devices)
    shards = data * fsdp * self.train.accumulate
    if self.data.batch_size % shards:
      raise UserError(f'data.batch_size={self.data.batch_size} is not a multiple of {shards} '
                      f'(mesh.data {data} x mesh.fsdp {fsdp} x train.accumulate {self.train.accumulate})')
    if self.data.length % sequence:
      raise UserError(f'data.length={self.data.length} is not a multiple of mesh.sequence={sequence}')
    chunk = getattr(self.model, 'chunk', 1)
    if self.data.length % chunk:
      raise UserError(f'data.length={self.data.length} is not a multiple of {chunk}, the tokens in a chunk of {type(self.model).__name__}')
    if self.train.start_at and not hasattr(self.model, self.train.start_at):
      raise UserError(f'train.start_at={self.train.start_at!r} is no part of {type(self.model).__name__}')
    longest, most = getattr(self.data, 'most', self.data.length), self.model.max_length
    if most is not None and longest > most:
      raise UserError(f'documents have up to {longest} tokens (data.{"most" if hasattr(self.data, "most") else "length"}), but the model can read {most}')
    predicted = getattr(self.task, 'targets_are', 'next tokens')
    if predicted != self.data.targets_are:
      raise UserError(f'{type(self.task).__name__} predicts {predicted}, but the targets of {type(self.data).__name__} are {self.data.targets_are}')


def quick(experiment: Experiment, devices: int) -> Experiment:
  """The same experiment for two steps on a tiny batch: whether it runs, not what it gives."""
  data, fsdp, _, sequence = experiment.mesh.sizes(devices)
  rows = data * fsdp * experiment.train.accumulate
  small = {'train.steps': 2, 'train.log_every': 1, 'train.checkpoint_every': 0, 'data.batch_size': rows,
           'data.length': min(experiment.data.length, 32 * sequence)}
  if experiment.train.start_at and not pathlib.Path(experiment.train.start).exists():
    small = {'train.start_at': '', 'train.start': ''} | small                                # a part that is not trained yet is drawn at random
  if hasattr(experiment.data, 'most'):
    small = {'data.most': min(experiment.data.most, small['data.length'])} | small           # before the length, which must not be below it
  for index, (_, evaluator) in enumerate(experiment.evals):
    for name, most in (('max_tokens', 256), ('final_max_tokens', 256), ('tokens', 8), ('max_bytes', 4096)):
      value = getattr(evaluator, name, None)
      if hasattr(evaluator, name):
        small[f'evals.{index}.1.{name}'] = most if value is None else min(value, most)
  for path, value in small.items():
    experiment = override(experiment, path, value)
  return experiment
