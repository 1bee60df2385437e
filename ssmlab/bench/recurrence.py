"""The matrix-state recurrence: token loop against chunks, in time and in the temporary memory of training."""

import argparse
import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ssmlab import bench
from ssmlab.ops import linear_recurrence

KINDS = ('scalar', 'vector', 'vector strong', 'rank-one')


def run(batch: int = 4, heads: int = 4, size: int = 64, length: int = 2048, memory_length: int = 8192, repeats: int = 5,
        chunk: int | None = None) -> list[dict[str, object]]:
  """One row per kind of decay: milliseconds forward and forward + backward (best of `repeats`), temporary MiB of the gradient.

  size: of key and value.  length: tokens timed.  memory_length: tokens that the memory is compiled for; nothing that long is run.
  Kinds: 'scalar' one decay per head, exp(-1 .. 0); 'vector' one per key channel in RWKV-7's range, exp(-0.607 .. 0); 'vector strong' has
  log decays down to -30; 'rank-one' is RWKV-7: vector decay and the correction a, b.
  """
  rows = []
  for kind in KINDS:
    row: dict[str, object] = {'decay': kind}
    for form, implementation in (('loop', 'sequential'), ('chunked', 'chunked')):
      forward, gradient = _functions(implementation, chunk if implementation == 'chunked' else None)
      arguments = example(kind, batch, length, heads, size)
      row[f'{form}_forward_ms'] = _milliseconds(forward, arguments, repeats)
      row[f'{form}_both_ms'] = _milliseconds(gradient, arguments, repeats)
      long = jax.eval_shape(lambda: example(kind, batch, memory_length, heads, size))
      row[f'{form}_temp_MiB'] = jax.jit(gradient).lower(long).compile().memory_analysis().temp_size_in_bytes / 2**20
    for part in ('forward', 'both'):
      row[f'{part}_ratio'] = row[f'loop_{part}_ms'] / row[f'chunked_{part}_ms']
    rows.append(row)
  return rows


def example(kind: str, batch: int, length: int, heads: int, size: int) -> dict[str, jax.Array]:
  """Arguments of `linear_recurrence` for one kind of decay, float32."""
  shape = (batch, length, heads, size)
  keys = dict(zip(('q', 'k', 'v', 'log_decay', 'a', 'b'), jax.random.split(jax.random.key(0), 6)))
  arguments = {name: jax.random.normal(keys[name], shape) for name in 'qkv'}
  arguments['k'] /= size**0.5
  uniform = jax.random.uniform(keys['log_decay'], shape[:3] if kind == 'scalar' else shape)
  arguments['log_decay'] = {'scalar': -uniform, 'vector strong': -30 * uniform**4}.get(kind, -0.607 * uniform)
  if kind == 'rank-one':
    direction = jax.random.normal(keys['a'], shape)
    direction /= jnp.linalg.norm(direction, axis=-1, keepdims=True)
    arguments |= {'a': -direction, 'b': direction * jax.random.uniform(keys['b'], shape)}
  return arguments


def _functions(implementation: str, chunk: int | None) -> tuple[Callable, Callable]:
  forward = lambda arguments: linear_recurrence(**arguments, implementation=implementation, chunk=chunk)
  return forward, jax.grad(lambda arguments: jnp.sum(forward(arguments)[0] ** 2))


def _milliseconds(function: Callable, arguments: dict[str, jax.Array], repeats: int) -> float:
  function = jax.jit(function)
  return 1000 * bench.seconds(lambda: function(arguments), repeats)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog='ssmlab bench recurrence', description=__doc__)
  for name, default in (('batch', 4), ('heads', 4), ('size', 64), ('length', 2048), ('memory-length', 8192), ('repeats', 5)):
    parser.add_argument(f'--{name}', type=int, default=default, help='default %(default)s')
  parser.add_argument('--chunk', type=int, help='tokens per chunk; default: the operator chooses')
  parser.add_argument('-o', '--output', help='also write the table here, .json or .csv')
  options = vars(parser.parse_args(argv))
  output = options.pop('output')
  path = bench.table_path(output) if output else None
  rows = run(**options)
  print(bench.table(rows))
  if path:
    bench.write(path, rows)
  return 0


if __name__ == '__main__':
  sys.exit(main())
