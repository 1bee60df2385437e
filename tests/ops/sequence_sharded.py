"""Run by test_sequence.py in a process with eight virtual devices: operators whose time the mesh splits, against one device.

Prints one JSON object per case: the largest difference of outputs, last state and every gradient, each relative to its largest number, and the
largest result of each kind of collective, in elements.
"""

import collections
import functools
import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.core import mesh as meshes
from ssmlab.ops.attention import attend
from ssmlab.ops.diagonal_recurrence import diagonal_recurrence
from ssmlab.ops.inner_descent import inner_descent
from ssmlab.ops.linear_recurrence import linear_recurrence
from ssmlab.ops.max_stabilised import weighted_average
from ssmlab.ops.segments import positions
from ssmlab.ops.selective_scan import selective_scan
from ssmlab.ops.short_convolution import short_convolution, token_shift
from ssmlab.ops.slstm_recurrence import State, slstm_recurrence
from ssmlab.ops.stabilised_gates import stabilised_gates

BATCH, TIME, HEADS, KEY, VALUE = 2, 64, 2, 4, 6
# Rows of documents over four parts of 16 tokens: borders inside, on and across those of the parts, a part of padding, one token, one row whole.
ROWS = np.repeat(np.array([[1, 2, 3, 0, 4, 5, 6], [1, 1, 1, 1, 1, 1, 1]]), [16, 5, 22, 16, 3, 1, 1], axis=1).astype(np.int32)
CROSSING = np.repeat(np.array([[0, 1, 2, 2, 3, 0, 0], [7, 7, 8, 0, 8, 9, 9]]), [3, 20, 8, 1, 16, 8, 8], axis=1).astype(np.int32)
MESHES = {'sequence': dict(data=2, sequence=4), 'alone': dict(sequence=8)}


def draw(random, *shape):
  return jnp.asarray(random.normal(size=shape), jnp.float32)


def matrix_state(random, *, decay, rank_one=False, bonus=False, form='chunked', shared=False):
  token = BATCH, TIME, HEADS, KEY
  narrow = BATCH, TIME, 1, KEY
  tokens = dict(q=draw(random, *(narrow if shared else token)), k=draw(random, *(narrow if shared else token)), v=draw(random, BATCH, TIME, HEADS, VALUE))
  if decay:
    tokens['log_decay'] = -jnp.exp(draw(random, *(token if decay == 'channel' else token[:3])))
  if rank_one:
    a = draw(random, *token)
    tokens['a'] = a / jnp.linalg.norm(a, axis=-1, keepdims=True)
    tokens['b'] = -jax.nn.sigmoid(draw(random, *token)) * tokens['a']
  fixed = dict(initial=draw(random, BATCH, HEADS, KEY, VALUE)) | (dict(bonus=draw(random, HEADS, KEY)) if bonus else {})
  return lambda ids, **arrays: linear_recurrence(segment_ids=ids, implementation=form, **arrays), tokens, fixed


def diagonal(random, *, form, reverse=False, imaginary=False, constant=False):
  wide = BATCH, TIME, 4
  size, angle = jax.nn.sigmoid(draw(random, *(wide[2:] if constant else wide))), draw(random, *(wide[2:] if constant else wide))
  tokens, fixed = dict(b=draw(random, *wide)), dict(initial=draw(random, BATCH, 4))
  (fixed if constant else tokens).update(dict(real=size * jnp.cos(angle), imaginary=size * jnp.sin(angle)) if imaginary else dict(real=size))

  def run(ids, real, b, initial, imaginary=None):
    if imaginary is None:
      return diagonal_recurrence(real, b, initial, ids, reverse, form)
    return diagonal_recurrence((real, imaginary), (b, -b), (initial, 2 * initial), ids, reverse, form)
  return run, tokens, fixed


def selective(random, form):
  tokens = dict(u=draw(random, BATCH, TIME, 4), dt=jax.nn.softplus(draw(random, BATCH, TIME, 4)), b=draw(random, BATCH, TIME, 3), c=draw(random, BATCH, TIME, 3))
  fixed = dict(a=-jnp.exp(draw(random, 4, 3)), initial=draw(random, BATCH, 4, 3))
  return lambda ids, **arrays: selective_scan(segment_ids=ids, implementation=form, **arrays), tokens, fixed


def average(random, form):
  tokens = dict(k=3 * draw(random, BATCH, TIME, 4), v=draw(random, BATCH, TIME, 4))
  fixed = dict(log_decay=-jnp.exp(draw(random, 4)), bonus=draw(random, 4), sums=draw(random, BATCH, 4), weights=jnp.exp(draw(random, BATCH, 4)))

  def run(ids, k, v, log_decay, bonus, sums, weights):
    y, (numerator, denominator, exponent) = weighted_average(k, v, log_decay, bonus, (sums, weights, sums), ids, form)
    return y, numerator / denominator                        # what does not depend on where the exponent is taken out
  return run, tokens, fixed


def gates(random, form):
  tokens = dict(log_forget=draw(random, BATCH, TIME, HEADS), log_input=3 * draw(random, BATCH, TIME, HEADS))
  return lambda ids, **arrays: stabilised_gates(segment_ids=ids, implementation=form, **arrays), tokens, dict(initial=draw(random, BATCH, HEADS))


def short(random, reach):
  tokens, fixed = dict(x=draw(random, BATCH, TIME, 4)), dict(tail=draw(random, BATCH, reach, 4))
  if reach == 1:
    return lambda ids, x, tail: token_shift(x, tail[:, 0], ids), tokens, fixed
  fixed['kernel'] = draw(random, reach + 1, 4)
  return lambda ids, x, tail, kernel: short_convolution(x, kernel, None, tail, ids), tokens, fixed


def attention(random, **rule):
  tokens = dict(q=draw(random, BATCH, TIME, 4, KEY), k=draw(random, BATCH, TIME, 2, KEY), v=draw(random, BATCH, TIME, 2, KEY))
  return lambda ids, **arrays: attend(segment_ids=ids, **arrays, **rule), tokens, {}


def slstm(random):
  fixed = dict(recurrent=0.3 * draw(random, HEADS, KEY, 4, KEY), start=draw(random, BATCH, HEADS, KEY))
  run = lambda ids, gates, recurrent, start: slstm_recurrence(gates, recurrent, State(start, start, jnp.exp(start), start), ids)[0]
  return run, dict(gates=draw(random, BATCH, TIME, 4, HEADS, KEY)), fixed


def descent(random):
  heads = BATCH, TIME, HEADS
  tokens = dict(q=draw(random, *heads, KEY), k=draw(random, *heads, KEY), target=draw(random, *heads, KEY), rate=0.1 * draw(random, *heads))
  fixed = dict(weight=draw(random, HEADS, KEY, KEY), bias=draw(random, HEADS, KEY), scale=draw(random, HEADS, KEY), shift=draw(random, HEADS, KEY))

  def run(ids, **arrays):
    places, _ = positions(ids, TIME, jnp.zeros((BATCH,), jnp.int32))
    return inner_descent(place_rate=1 / jnp.arange(1.0, 5), positions=places, eps=1e-5, segment_ids=ids, **arrays)
  return run, tokens, fixed


CASES = {
    **{f'matrix, {name}': functools.partial(matrix_state, **options) for name, options in {
        'no decay': dict(decay=None), 'by head': dict(decay='head'), 'by head, shared keys': dict(decay='head', shared=True), 'by channel': dict(decay='channel'),
        'bonus': dict(decay='channel', bonus=True), 'rank one': dict(decay='channel', rank_one=True), 'delta': dict(decay='head', rank_one=True),
        'loop': dict(decay='channel', rank_one=True, form='sequential')}.items()},
    **{f'diagonal, {name}, {form}': functools.partial(diagonal, form=form, **options) for form in ('sequential', 'associative') for name, options in {
        'real': {}, 'complex': dict(imaginary=True), 'constant': dict(imaginary=True, constant=True), 'reverse': dict(reverse=True)}.items()},
    'diagonal, constant, blocked': functools.partial(diagonal, form='blocked', imaginary=True, constant=True),
    **{f'selective, {form}': functools.partial(selective, form=form) for form in ('recomputed', 'materialised')},
    **{f'{name}, {form}': functools.partial(make, form=form) for name, make in (('average', average), ('gates', gates)) for form in ('sequential', 'associative')},
    'token shift': functools.partial(short, reach=1), 'short convolution': functools.partial(short, reach=3),
    'attention': attention, 'attention both ways': functools.partial(attention, causal=False), 'window': functools.partial(attention, window=7),
    'long window': functools.partial(attention, window=24), 'window both ways': functools.partial(attention, window=7, causal=False),
    'slopes': functools.partial(attention, slopes=(0.5, 0.25, 0.125, 0.0625)), 'slstm': slstm, 'inner descent': descent,
}


def both(run, ids, weights):
  """Outputs and gradients of a sum that weighs every output."""
  def value(arrays):
    found = run(ids, **arrays)
    return sum(jnp.sum(x * w) for x, w in zip(jax.tree.leaves(found), weights)), found
  return jax.jit(jax.value_and_grad(value, has_aux=True))


def collectives(compiled) -> tuple[dict[str, int], dict[str, int]]:
  """(elements of the largest result, number) of each kind."""
  found = re.findall(r'= (\S+\[[\d,]*\]\S*|\(.*?\)) (all-gather|all-to-all|all-reduce|collective-permute)(?:-start)?\(', compiled.as_text())
  sizes = {}
  for shape, name in found:
    size = max(math.prod(int(n) for n in dims.split(',') if n) for dims in re.findall(r'\[([\d,]*)\]', shape))
    sizes[name] = max(sizes.get(name, 0), size)
  return sizes, collections.Counter(name for _, name in found)


def case(name: str, on: str, ids) -> None:
  random = np.random.default_rng(0)
  run, tokens, fixed = CASES[name](random)
  arrays = tokens | fixed
  weights = [draw(random, *x.shape) for x in jax.tree.leaves(jax.eval_shape(lambda arrays: run(ids, **arrays), arrays))]
  one = both(run, ids, weights)(arrays)
  mesh = meshes.make(meshes.MeshConfig(**MESHES[on]))
  layout = lambda x: jax.sharding.NamedSharding(mesh, meshes.spec(x.shape, ('batch', 'time', *(None,) * (x.ndim - 2)), dict(mesh.shape)))
  with meshes.use(mesh):
    placed = {key: jax.device_put(x, layout(x)) if key in tokens else x for key, x in arrays.items()}
    compiled = both(run, jax.device_put(ids, layout(ids)), weights).lower(placed).compile()
    many = compiled(placed)
  difference = max(float(np.abs(np.asarray(a) - np.asarray(b)).max() / (np.abs(np.asarray(b)).max() + 1e-6)) for a, b in zip(*map(jax.tree.leaves, (many, one))))
  sizes, counts = collectives(compiled)
  print(json.dumps(dict(name=name, mesh=on, difference=difference, collectives=sizes, counts=counts)), flush=True)


if __name__ == '__main__':
  jax.config.update('jax_default_matmul_precision', 'highest')
  for name in sys.argv[1:] or CASES:
    for on, ids in (('sequence', ROWS), ('alone', CROSSING)):
      case(name, on, jnp.asarray(ids))
