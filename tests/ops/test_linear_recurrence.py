"""Every form of the linear recurrence gives the definition's output, final state and gradients."""

import functools
import importlib
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.ops import linear_recurrence
from ssmlab.ops.linear_recurrence.chunked import chunked

chunked_module = importlib.import_module('ssmlab.ops.linear_recurrence.chunked')         # the package's name is the function

BATCH, HEADS, KEY, VALUE, CHUNK = 2, 2, 4, 5, 8
LENGTH = 3 * CHUNK + 5
KINDS = ('none', 'scalar', 'vector')
FORMS = {'associative': dict(implementation='associative'), 'chunked': dict(implementation='chunked', chunk=CHUNK)}
SETTINGS = list(itertools.product(KINDS, (False, True), (False, True)))


def arguments(seed, kind, rank_one, bonus, length, dtype=jnp.float64, key=KEY):
  keys = jax.random.split(jax.random.key(seed), 8)
  normal = lambda i, *shape: jax.random.normal(keys[i], shape, dtype)
  token = (BATCH, length, HEADS)
  made = dict(q=normal(0, *token, key), k=normal(1, *token, key) / 2, v=normal(2, *token, VALUE), initial=normal(3, BATCH, HEADS, key, VALUE))
  if kind != 'none':
    made['log_decay'] = -jnp.exp(normal(4, *token, *((key,) if kind == 'vector' else ())))
  if rank_one:                                          # a reads another direction than b writes, as in RWKV-7
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    made |= dict(a=-unit(normal(5, *token, key)), b=unit(normal(6, *token, key)) / 2)
  if bonus:
    made['bonus'] = normal(7, HEADS, key)
  return made


def decays(log_decay):
  """The same shape with ordinary, weak and strong decay, single strong ones, and some 500 per chunk."""
  single = log_decay.at[:, ::5].set(-30.0)
  return {'ordinary': log_decay, 'near one': log_decay * 1e-5, 'near zero': log_decay - 12, 'single -30': single, '-500 per chunk': log_decay - 60}


def layouts(length):
  """Documents that begin anywhere: one, several, after padding on the left, before padding on the right and inside."""
  one = np.ones((BATCH, length), np.int32)
  many = one.copy()
  for document, start in enumerate((0, 1, 2, 7, 8, 13, 24, 26)):
    many[0, start:] = document + 1
  many[1, length // 2:] = 9
  padded = many.copy()
  padded[0, :3] = padded[1, -4:] = padded[:, 10:12] = 0
  empty = one.copy()
  empty[1] = 0
  return {'one document': one, 'many': many, 'padded': padded, 'nothing but padding': empty}


@functools.partial(jax.jit, static_argnames=('implementation', 'chunk'))
def compute(made, segment_ids, **form):
  """(output, final state) and all gradients of a fixed projection of both."""
  def loss(made):
    o, state = linear_recurrence(**made, segment_ids=segment_ids, **form)
    weigh = lambda x: jnp.sum(x.astype(state.dtype) * np.cos(np.arange(x.size) ** 2 / 7).reshape(x.shape).astype(state.dtype))
    return weigh(o) + weigh(state), (o, state)
  gradient, results = jax.grad(loss, has_aux=True)(made)
  return *results, gradient


def compiled(**form):
  return functools.partial(compute, **form)


def assert_close(results, expected, relative):
  """Every array within `relative` of the expected array's largest value."""
  def check(x, y):
    np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=0, atol=relative * float(jnp.max(jnp.abs(y))) + 1e-30)
  jax.tree.map(check, results, expected)


def check_forms(kind, rank_one, bonus, length, forms):
  with jax.enable_x64(True):
    made = arguments(0, kind, rank_one, bonus, length)
    reference, fast = compiled(implementation='sequential'), [compiled(**form) for form in forms]
    every_decay = [{}] if kind == 'none' else [dict(log_decay=g) for g in decays(made['log_decay']).values()]
    for decay, ids in itertools.product(every_decay, layouts(length).values()):
      case = made | decay
      expected = reference(case, ids)
      chex.assert_tree_all_finite(expected)
      for function in fast:
        assert_close(function(case, ids), expected, 1e-10)


@pytest.mark.parametrize('kind, rank_one, bonus', [
    ('none', True, False), ('scalar', False, False), ('scalar', True, True), ('vector', False, False), ('vector', False, True), ('vector', True, False)])
def test_chunked_is_the_definition(kind, rank_one, bonus):
  check_forms(kind, rank_one, bonus, LENGTH, [FORMS['chunked']])


@pytest.mark.parametrize('rank_one, bonus', ((False, True), (True, False)))
def test_associative_is_the_definition(rank_one, bonus):
  check_forms('vector', rank_one, bonus, 11, [FORMS['associative']])


@pytest.mark.parametrize('length', (1, CHUNK - 1, CHUNK, CHUNK + 1))
def test_lengths(length):
  check_forms('vector', True, False, length, [FORMS['chunked']])


@pytest.mark.slow
@pytest.mark.parametrize('length', (1, 7, CHUNK, CHUNK + 1, LENGTH, 64))
@pytest.mark.parametrize('kind, rank_one, bonus', SETTINGS)
def test_lengths_of_all_settings(kind, rank_one, bonus, length):
  check_forms(kind, rank_one, bonus, length, [*FORMS.values(), dict(implementation='chunked', chunk=32), dict(implementation='auto')])


@pytest.mark.parametrize('chunk, group', ((1, 1), (5, 1), (4, 3)))
def test_chunk_size_and_group_change_nothing(chunk, group):
  with jax.enable_x64(True):
    made = arguments(1, 'vector', True, False, LENGTH)
    starts = jnp.zeros((BATCH, LENGTH), bool).at[0, 11].set(True).at[1, 16].set(True)
    tokens = {name: made[name] for name in ('q', 'k', 'v', 'log_decay', 'a', 'b')} | dict(starts=starts)
    ids = 1 + jnp.cumsum(starts, axis=1)
    def total(tokens, initial, form):
      o, state = form({**tokens, 'starts': starts}, None, initial)
      return jnp.sum(jnp.sin(o)) + jnp.sum(jnp.cos(state))
    differentiated = {name: x for name, x in tokens.items() if name != 'starts'}
    def gradient(form):
      return jax.jit(jax.grad(functools.partial(total, form=form), argnums=(0, 1)))(differentiated, made['initial'])
    expected = gradient(lambda tokens, _, initial: linear_recurrence(
        **{k: v for k, v in tokens.items() if k != 'starts'}, initial=initial, segment_ids=ids, implementation='sequential'))
    assert_close(gradient(functools.partial(chunked, chunk=chunk, group=group)), expected, 1e-10)


@pytest.mark.parametrize('kind, rank_one, group', (('none', False, 1), ('scalar', False, 1), ('scalar', False, 3), ('vector', False, 1), ('scalar', True, 1)))
def test_heads_that_share_keys(kind, rank_one, group, monkeypatch):
  """q and k with one head for three of v are q and k repeated: output, state and gradients, in every form, also with several chunks at once."""
  monkeypatch.setattr(chunked_module, '_sizes', lambda tokens: (CHUNK, group))
  with jax.enable_x64(True):
    made = arguments(2, kind, rank_one, False, LENGTH)
    three = lambda x: jnp.repeat(x, 3, axis=2) * jnp.arange(1.0, 1 + 3 * HEADS).reshape((-1,) + (1,) * (x.ndim - 3)) / (3 * HEADS)
    made |= {name: three(made[name]) for name in ('v', 'log_decay', 'a', 'b') if name in made}
    made['initial'] = jnp.repeat(made['initial'], 3, axis=1)
    def repeated(made):
      return made | {name: jnp.repeat(made[name], 3, axis=2) for name in 'qk'}
    def gradient(form, prepare=lambda made: made):
      def total(made, layout):
        o, state = linear_recurrence(**prepare(made), segment_ids=layout, **form)
        return jnp.sum(jnp.sin(o)) + jnp.sum(jnp.cos(state)), (o, state)
      return jax.jit(jax.grad(total, has_aux=True))
    definition = gradient(dict(implementation='sequential'), repeated)
    forms = [gradient(form) for form in (*FORMS.values(), dict(implementation='sequential'))]
    for layout in layouts(LENGTH).values():
      for form in forms:
        assert_close(form(made, layout), definition(made, layout), 1e-10)


@pytest.mark.parametrize('bonus', (False, True))
def test_definition_in_numpy(bonus):
  with jax.enable_x64(True):
    made = arguments(2, 'vector', True, bonus, LENGTH)
    ids = layouts(LENGTH)['padded']
    o, state = linear_recurrence(**made, segment_ids=ids, implementation='sequential')
  arrays = {name: np.asarray(x) for name, x in made.items()}
  for row in range(BATCH):
    s, seen = arrays['initial'][row].copy(), None
    for t in range(LENGTH):
      if ids[row, t] == 0:
        np.testing.assert_array_equal(o[row, t], 0)
        continue
      if seen is not None and ids[row, t] != ids[row, t - 1]:
        s = np.zeros_like(s)
      seen = ids[row, t]
      q, k, v, g, a, b = (arrays[name][row, t] for name in ('q', 'k', 'v', 'log_decay', 'a', 'b'))
      after = np.exp(g)[..., None] * s + b[..., None] * np.einsum('hk,hkv->hv', a, s)[:, None] + k[..., None] * v[:, None]
      read = s + arrays['bonus'][..., None] * k[..., None] * v[:, None] if bonus else after
      np.testing.assert_allclose(o[row, t], np.einsum('hk,hkv->hv', q, read), rtol=1e-11, atol=1e-12)
      s = after
    np.testing.assert_allclose(state[row], s, rtol=1e-11, atol=1e-12)


def test_gradient_against_finite_differences():
  with jax.enable_x64(True):
    made = arguments(3, 'vector', True, True, 7)
    ids = layouts(7)['padded']
    def loss(made):
      o, state = linear_recurrence(**made, segment_ids=ids, implementation='sequential')
      return jnp.sum(jnp.sin(o)) + jnp.sum(jnp.cos(state))
    gradient = jax.jit(jax.grad(loss))(made)
    loss = jax.jit(loss)
    for name in made:
      direction = jax.random.normal(jax.random.key(0), made[name].shape, jnp.float64)
      shifted = lambda step: loss(made | {name: made[name] + step * direction})
      np.testing.assert_allclose((shifted(1e-5) - shifted(-1e-5)) / 2e-5, jnp.vdot(gradient[name], direction), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize('setting', (('scalar', False, False), ('vector', True, False), ('vector', False, True)))
def test_split_into_calls_equals_whole(setting):
  with jax.enable_x64(True):
    made = arguments(4, *setting, LENGTH)
    bonus, state = made.pop('bonus', None), made.pop('initial')
    whole = linear_recurrence(**made, bonus=bonus, initial=state, implementation='chunked', chunk=CHUNK)
    parts = []
    for begin, end in ((0, 11), (11, 12), (12, LENGTH)):
      o, state = linear_recurrence(**{name: x[:, begin:end] for name, x in made.items()}, bonus=bonus, initial=state, chunk=CHUNK)
      parts.append(o)
    assert_close((jnp.concatenate(parts, axis=1), state), whole, 1e-12)


@pytest.mark.parametrize('kind, rank_one', (('scalar', False), ('vector', False), ('vector', True)))
def test_float32_under_any_decay(kind, rank_one):
  """Float32 stays within 2e-5 of float64, whatever the decay; -1500 in a chunk is the last case."""
  made = arguments(5, kind, rank_one, False, LENGTH, jnp.float32)
  function, definition = compiled(**FORMS['chunked']), compiled(implementation='sequential')
  ids = layouts(LENGTH)['many']
  for g in [*decays(made['log_decay']).values(), made['log_decay'] * 0 - 190]:
    results = function(made | dict(log_decay=g), ids)
    chex.assert_tree_all_finite(results)
    with jax.enable_x64(True):
      wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), made | dict(log_decay=g))
      expected = jax.tree.map(np.asarray, definition(wide, ids))
    error = lambda x, y: np.max(np.abs(np.asarray(x, np.float64) - y)) / (np.max(np.abs(y)) + 1e-6)
    errors = jax.tree.map(error, results, expected)
    assert max(jax.tree.leaves(errors)) < 2e-5


@pytest.mark.parametrize('implementation', ('sequential', 'chunked'))
def test_bfloat16_is_finite_and_close(implementation):
  made = arguments(6, 'vector', True, True, LENGTH, jnp.float32)
  small = {name: x if name in ('initial', 'log_decay') else x.astype(jnp.bfloat16) for name, x in made.items()}
  ids = layouts(LENGTH)['padded']
  results = compiled(implementation=implementation)(small, ids)
  assert results[0].dtype == jnp.bfloat16 and results[1].dtype == jnp.float32
  assert all(x.dtype == small[name].dtype for name, x in results[2].items())
  chex.assert_tree_all_finite(results)
  rounded = {name: x.astype(jnp.float32) for name, x in small.items()}
  assert_close(results, compiled(implementation='sequential')(rounded, ids), 2e-2)


def test_constant_decays_broadcast():
  made = arguments(7, 'none', False, False, 9, jnp.float32)
  per_head, per_key = -jnp.arange(1.0, HEADS + 1), -jnp.arange(1.0, 1 + HEADS * KEY).reshape(HEADS, KEY) / 3
  full = lambda g: jnp.broadcast_to(g, (BATCH, 9) + g.shape)
  short, long = (per_head, per_head[None, None], per_key, per_key[None, None]), (full(per_head),) * 2 + (full(per_key),) * 2
  run = jax.jit(lambda every: [linear_recurrence(**made, log_decay=g) for g in every])
  chex.assert_trees_all_close(run(short), run(long), rtol=1e-6)


def test_one_token_is_one_update_without_a_loop():
  made = arguments(8, 'vector', True, True, 1, jnp.float32)
  text = str(jax.make_jaxpr(lambda made: linear_recurrence(**made))(made))
  assert 'scan' not in text and 'while' not in text


def test_memory_of_training_grows_with_inputs_not_with_states():
  shape = jax.ShapeDtypeStruct((1, 8192, 1, 64), jnp.float32)
  made = {name: shape for name in ('q', 'k', 'v', 'log_decay', 'a', 'b')}
  def temporary(implementation):
    gradient = jax.grad(lambda made: jnp.sum(linear_recurrence(**made, implementation=implementation)[0] ** 2))
    return jax.jit(gradient).lower(made).compile().memory_analysis().temp_size_in_bytes
  assert temporary('chunked') < temporary('sequential') / 6
  assert temporary('chunked') < 4 * len(made) * shape.size * 4


def test_no_tokens():
  made = arguments(9, 'scalar', False, False, 0, jnp.float32)
  o, state = linear_recurrence(**made)
  assert o.shape == made['v'].shape
  chex.assert_trees_all_equal(state, made['initial'])


@pytest.mark.parametrize('change, message', (
    (dict(implementation='fast'), 'sequential, associative, chunked'),
    (dict(k=np.zeros((2, 9, 2, 3), np.float32)), r'k has shape \(2, 9, 2, 3\); expected \[batch, time, heads, key\]'),
    (dict(v=np.zeros((2, 8, 2, 5), np.float32)), 'v has shape'),
    (dict(a=np.zeros((2, 9, 2, 4), np.float32)), 'b is None'),
    (dict(log_decay=np.zeros((2, 9, 3), np.float32)), 'log_decay has shape'),
    (dict(bonus=np.zeros((4,), np.float32)), r'bonus has shape \(4,\); expected \[heads, key\]'),
    (dict(initial=np.zeros((2, 2, 5, 4), np.float32)), 'initial has shape'),
    (dict(segment_ids=np.zeros((2, 8), np.int32)), 'segment_ids has shape'),
    (dict(chunk=0), 'chunk=0'),
))
def test_errors_name_the_argument(change, message):
  made = arguments(10, 'none', False, False, 9, jnp.float32)
  with pytest.raises(ValueError, match=message):
    linear_recurrence(**(made | change))


@pytest.mark.parametrize('scalar', [False, True])
def test_a_state_known_to_be_zero_inside_jit(scalar):
  """XLA CPU's fusions return garbage for one; 8 heads of 64 in one chunk are enough, each in a program of its own."""
  keys = jax.random.split(jax.random.key(0), 4)
  shape = (2, 32, 8, 64)
  q, k, v = (jax.random.normal(key, shape) / 8 for key in keys[:3])
  decay = -jax.nn.softplus(jax.random.normal(keys[3], shape[:3])) if scalar else None
  zeros = lambda: jnp.zeros((2, 8, 64, 64))
  run = lambda form: jax.jit(lambda q, k, v: linear_recurrence(q, k, v, decay, initial=zeros(), implementation=form))(q, k, v)
  chex.assert_trees_all_close(run('chunked'), run('sequential'), atol=1e-6)
