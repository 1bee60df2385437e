"""Experiments' models side by side in inference: prefill and decoding, tokens per second, in one run with turns taken in rotation."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ssmlab import bench
from ssmlab.core.config import UserError
from ssmlab.core.params import init
from ssmlab.eval.generate import stream


def run(models: Mapping[str, Any], length: int = 512, new: int = 64, batch: int = 1, rounds: int = 3) -> list[bench.Row]:
  """One row per model: parameters, forward FLOPs per token at `length`, tokens per second of prefill and of decoding after it.

  models: name -> causal LM; freshly drawn parameters, random tokens, decoding of `new` tokens at `batch` sequences, greedy or, by a CALM, which
    has no probabilities, at temperature 1.
  The best of `rounds`, in each of which every model has its turn.
  ratio: decoding speed over the first model's.
  """
  actions = dict(prefill={}, decoding={})
  for name, model in models.items():
    params = init(jax.random.key(0), model.params())
    ids = jax.random.randint(jax.random.key(1), (batch, length), 0, model.vocab)
    for use, action in _actions(model, params, ids, new).items():
      actions[use][name] = action
  taken = {use: bench.in_turns(of_use, rounds, calls=2) for use, of_use in actions.items()}
  first = taken['decoding'][next(iter(models))]
  return [dict(model=name, parameters=model.size(), flops=model.flops(length), prefill=batch * length / taken['prefill'][name],
               decoding=batch * new / taken['decoding'][name], ratio=first / taken['decoding'][name]) for name, model in models.items()]


def _actions(model, params, ids, new: int):
  fresh = model.init_state(len(ids), ids.shape[1] + new)
  read = jax.jit(lambda params, state, ids: model.hidden(params, ids, state)[1])
  state = read(params, fresh, ids)
  temperature = 0.0 if model.chunk == 1 else 1.0
  return dict(prefill=lambda: read(params, fresh, ids),
              decoding=lambda: [token for token, _ in stream(model, params, [[]] * len(ids), new, temperature=temperature, state=state)])


def main(argv: Sequence[str] | None = None) -> None:
  from ssmlab.launch import load_experiment, resolve
  from ssmlab.opening import open_model
  parser = argparse.ArgumentParser(prog='ssmlab bench inference', description=__doc__)
  parser.add_argument('experiments', nargs='+', help='files or workdirs whose models are compared; ratios are to the first')
  for name, default in (('length', 512), ('new', 64), ('batch', 1), ('rounds', 3)):
    parser.add_argument(f'--{name}', type=int, default=default, help='default %(default)s')
  parser.add_argument('-o', '--output', help='also write the table here, .json or .csv')
  options = vars(parser.parse_args(argv))
  output, files = options.pop('output'), options.pop('experiments')
  path = bench.table_path(output) if output else None
  models = {file.removesuffix('.py'): resolve(load_experiment(file), []).model if file.endswith('.py') else open_model(file, 'bytes')[0] for file in files}
  for name, model in models.items():
    if not hasattr(model, 'init_state'):
      raise UserError(f'{name}: {type(model).__name__} does not generate; causal models only')
  print(f'{jax.device_count()} x {jax.devices()[0].device_kind}, parameters {jnp.float32.dtype}', file=sys.stderr)
  rows = run(models, **options)
  print(bench.table(rows))
  if path:
    bench.write(path, rows)


if __name__ == '__main__':
  main()
