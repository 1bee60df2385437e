"""What commands are given: workdirs and published checkpoints, and text to measure them on."""

import dataclasses
import os
import pathlib

from ssmlab.core.config import UserError


def open_model(path: str, tokenizer: str | None):
  """(model, parameters, tokenizer, experiment or None) of a workdir or of a published checkpoint."""
  from ssmlab.train import workdir
  if not os.path.exists(path):
    raise UserError(f'{path} does not exist')
  if os.path.exists(os.path.join(path, 'config.py')):
    experiment, params, _ = workdir.load(pathlib.Path(path))
    return experiment.model, params, experiment.data.tokenizer, experiment
  from ssmlab.interop.pretrained import load_pretrained
  model, params, _ = load_pretrained(path)
  chosen = _tokenizer(tokenizer, path)
  if chosen.vocab > model.vocab:
    raise UserError(f'tokenizer {chosen} has {chosen.vocab} ids, the model {model.vocab}')
  return model, params, chosen, None


def _tokenizer(name: str | None, path: str):
  from ssmlab.data import Bytes, HFTokenizer, RWKVWorld
  beside = os.path.join(path, 'tokenizer.json')
  if name is None and os.path.isfile(beside):
    name = beside
  if name is None:
    raise UserError(f'{path} has no tokenizer.json; name one with --tokenizer')
  if name == 'bytes':
    return Bytes()
  return HFTokenizer(name) if '.json' in os.path.basename(name) else RWKVWorld(name)


def needs(kind: type, model, path: str, what: str) -> None:
  """Raises UserError where the model at `path` is none of this kind; what: what it does instead."""
  if not isinstance(model, kind):
    raise UserError(f'{path} is of a {type(model).__name__}, which {what}')


def with_data(path: str, args):
  """(parameters, experiment) of a model on args.data, where that is given, as its validation text."""
  from ssmlab.data import Data, Text
  from ssmlab.models import LM
  from ssmlab.train.experiment import Experiment
  model, params, tokenizer, experiment = open_model(path, args.tokenizer)
  if experiment is None and not args.data:
    raise UserError('a published checkpoint has no data of its own; name a text with --data')
  if experiment is None:
    if type(model) is not LM:
      raise UserError(f'{path} is a published {type(model).__name__}: what it has learned to predict only a workdir says')
    experiment = Experiment(model=model, data=Data(tokenizer=tokenizer))
  if args.data:
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, source=Text(args.data, valid=args.data)))
  return params, experiment
