"""The series informed activation inside the MLPs: against its formula, as the plain activation, and with neighbours over calls and documents."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.params import init
from ssmlab.layers.channel import MLP, GatedMLP
from ssmlab.layers.series_activation import SeriesActivation

WIDTH, HIDDEN, TIME = 8, 12, 9
IDS = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 3], [0, 0, 4, 4, 0, 4, 4, 0, 0]], np.int32)
X = jax.random.normal(jax.random.key(1), (2, TIME, WIDTH))


def drawn(mix, spread=0.3):
  params = init(jax.random.key(0), mix.params(WIDTH))
  return jax.tree.map(lambda p: p + spread * jax.random.normal(jax.random.key(p.size), p.shape), params)


@pytest.mark.parametrize('scales', ['channel', 'layer'])
def test_formula(scales):
  """z = (sum_i sigma_i(a_i (v W_gate) + b_i) * (v W_up)) W_down, in float64 numpy."""
  mix = GatedMLP(HIDDEN, activation=SeriesActivation(('relu', 'tanh', 'silu'), scales=scales))
  params = drawn(mix)
  of = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  x, (a, b) = np.asarray(X, np.float64), (of['activation'][name] for name in 'ab')
  assert a.shape == b.shape == (3, HIDDEN if scales == 'channel' else 1)
  gate, phi = x @ of['w_gate'], 0
  for i, sigma in enumerate((lambda v: np.maximum(v, 0), np.tanh, lambda v: v / (1 + np.exp(-v)))):
    phi = phi + sigma(a[i] * gate + b[i])
  np.testing.assert_allclose(mix.apply(params, X)[0], phi * (x @ of['w_up']) @ of['w_down'], atol=1e-5)


def test_eq_9_has_a_projection_for_every_term():
  mix = MLP(HIDDEN, activation=SeriesActivation(('relu', 'tanh'), scales='none', projections=True))
  params = drawn(mix)
  assert params['w_up'].shape == (WIDTH, 2 * HIDDEN) and 'activation' in params and not params['activation']
  of = {name: np.asarray(value, np.float64) for name, value in params.items() if name != 'activation'}
  up = np.asarray(X, np.float64) @ of['w_up'] + of['b_up']
  np.testing.assert_allclose(mix.apply(params, X)[0], (np.maximum(up[..., :HIDDEN], 0) + np.tanh(up[..., HIDDEN:])) @ of['w_down'] + of['b_down'], atol=1e-5)


@pytest.mark.parametrize('name', ['silu', 'gelu'])
def test_one_term_is_the_plain_activation_and_a_silent_second_one_adds_nothing(name):
  plain = GatedMLP(HIDDEN, activation=name)
  params = drawn(plain)
  one = GatedMLP(HIDDEN, activation=SeriesActivation((name,)))
  start = init(jax.random.key(0), one.params(WIDTH))['activation']
  np.testing.assert_array_equal(one.apply(params | dict(activation=start), X)[0], plain.apply(params, X)[0])
  two = GatedMLP(HIDDEN, activation=SeriesActivation((name, name)))
  silent = dict(a=jnp.array([[1.0], [0.0]]) * jnp.ones(HIDDEN), b=jnp.zeros((2, HIDDEN)))
  chex.assert_trees_all_close(two.apply(params | dict(activation=silent), X)[0], plain.apply(params, X)[0], atol=1e-6)


def test_the_second_term_starts_small_and_learns():
  mix = GatedMLP(HIDDEN, activation=SeriesActivation())
  params = init(jax.random.key(0), mix.params(WIDTH))
  a, b = params['activation']['a'], params['activation']['b']
  assert (a[0] == 1).all() and 0 < np.abs(a[1]).max() < 0.1 and not np.asarray(b).any()
  gradient = jax.grad(lambda p: jnp.sum(mix.apply(p, X)[0] ** 2))(params)['activation']
  assert (np.abs(gradient['a']) > 0).all() and (np.abs(gradient['b']) > 0).all()
  declared = mix.params(WIDTH)['activation']
  assert all(not p.weight_decay and p.full_precision for p in declared.values())


def test_neighbours_look_back_over_calls_and_not_over_documents():
  mix = GatedMLP(HIDDEN, activation=SeriesActivation(neighbours=2))
  params = drawn(mix)
  assert np.abs(mix.apply(params, X)[0] - GatedMLP(HIDDEN, activation=SeriesActivation()).apply(
      params | dict(activation={k: v for k, v in params['activation'].items() if k != 'neighbours'}), X)[0]).max() > 1e-3
  whole, none = mix.apply(params, X)
  state, parts = mix.init_state(WIDTH, 2), []
  for begin, end in ((0, 4), (4, 5), (5, 9)):
    y, state = mix.apply(params, X[:, begin:end], state)
    parts.append(y)
  assert none is None
  chex.assert_trees_all_close(jnp.concatenate(parts, axis=1), whole, atol=1e-5)
  packed, _ = mix.apply(params, X, segment_ids=IDS)
  for row, places in ((0, [0, 1, 2]), (0, [3, 4, 5, 6]), (0, [7, 8]), (1, [2, 3]), (1, [5, 6])):
    alone, _ = mix.apply(params, X[row:row + 1, np.array(places)])
    chex.assert_trees_all_close(packed[row, np.array(places)], alone[0], atol=1e-5)


def test_refusals():
  for options, line in ((dict(terms=()), 'terms is empty'), (dict(terms=('silo',)), "activation 'silo' is not one of"),
                        (dict(scales='head'), "scales='head' is not one of channel, layer, none"), (dict(neighbours=-1), 'neighbours=-1 must be at least 0')):
    with pytest.raises(ValueError, match=line):
      SeriesActivation(**options)
  with pytest.raises(ValueError, match='is neither a name'):
    GatedMLP(HIDDEN, activation=3)


@pytest.mark.parametrize('field, value', [('terms', ('silu', 'relu')), ('scales', 'layer'), ('projections', True), ('neighbours', 1)])
def test_every_field_is_read(field, value):
  def values(series):
    mix = GatedMLP(HIDDEN, activation=series)
    params = jax.tree.map(lambda p: p + 0.1, init(jax.random.key(0), mix.params(WIDTH)))
    return [np.asarray(leaf).tolist() for leaf in (*jax.tree.leaves(params), mix.apply(params, X)[0])]
  assert values(SeriesActivation()) != values(dataclasses.replace(SeriesActivation(), **{field: value}))
