"""Declarations: keys by path, stacking, specs from axis names, precision."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core import dtypes, inits, mesh
from ssmlab.core.params import (
  Layer,
  Param,
  at_layer,
  hints,
  init,
  shapes,
  size,
  stack,
  vector,
)


def tree():
  return dict(a=Param((4, 6), ('width', 'inner')), b=dict(c=vector(6, 'inner', inits.by_layer(lambda layer: jnp.full((6,), layer.index / layer.count)))))


def test_one_more_array_leaves_the_others_as_they_were():
  small, large = init(jax.random.key(0), tree()), init(jax.random.key(0), dict(tree(), z=Param((3,), (None,)), b=dict(tree()['b'], y=Param((2,), (None,)))))
  assert (small['a'] == large['a']).all() and not (small['a'] == init(jax.random.key(1), tree())['a']).any()


def test_stacked_copies_differ_and_know_their_layer():
  stacked = stack(tree(), 3, first=1, stride=2, count=8)
  assert stacked['a'].shape == (3, 4, 6) and stacked['a'].axes == ('layer', 'width', 'inner')
  params = init(jax.random.key(0), stacked)
  assert not (params['a'][0] == params['a'][1]).any()
  np.testing.assert_allclose(params['b']['c'][:, 0], [1 / 8, 3 / 8, 5 / 8])
  np.testing.assert_allclose(init(jax.random.key(0), at_layer(tree(), 5, 10))['b']['c'], 0.5)
  assert size(stacked) == 3 * 30 and shapes(stacked)['a'].shape == (3, 4, 6)
  assert hints(stacked, 'weight_decay') == dict(a=True, b=dict(c=False))


@pytest.mark.parametrize('draw, shape, std', [
    (inits.fan_in(), (400, 300), 1 / 20), (inits.normal(0.3), (300, 300), 0.3), (inits.uniform(-2, 2), (300, 300), 2 / 3 ** 0.5),
    (inits.xavier_uniform(), (200, 400), (6 / 600 / 3) ** 0.5), (inits.torch_linear(), (300, 300), (1 / 900) ** 0.5),
    (inits.residual(0.5), (300, 300), 0.5 / 2)])
def test_initialisers_have_the_stated_spread(draw, shape, std):
  x = draw(jax.random.key(0), shape, Layer(0, 2))
  assert float(x.std()) == pytest.approx(std, rel=0.02) and abs(float(x.mean())) < 0.02 * std


@pytest.mark.parametrize('shape', [(24, 24), (48, 16), (16, 48)])
def test_orthogonal_is(shape):
  x = jax.vmap(lambda k: inits.orthogonal(2.0)(k, shape, Layer()))(jax.random.split(jax.random.key(0), 5))
  gram = jnp.einsum('nij,nik->njk', x, x) if shape[0] >= shape[1] else jnp.einsum('nij,nkj->nik', x, x)
  chex.assert_trees_all_close(gram, jnp.broadcast_to(4 * jnp.eye(min(shape)), gram.shape), atol=1e-4)


def test_log_uniform_covers_its_range():
  x = inits.log_uniform(1e-3, 1e-1)(jax.random.key(0), (5000,), Layer())
  assert 1e-3 <= float(x.min()) < 1.1e-3 and 0.9e-1 < float(x.max()) <= 1e-1
  assert float(jnp.median(x)) == pytest.approx(1e-2, rel=0.1)


def test_specs_follow_the_rules_and_use_a_mesh_axis_once():
  sizes = dict(data=2, fsdp=2, tensor=2, sequence=1)
  spec = lambda shape, *axes: tuple(mesh.spec(shape, axes, sizes))
  assert spec((4, 6), 'width', 'inner') == ('fsdp', 'tensor')
  assert spec((3, 4, 6), 'layer', 'width', 'inner') == (None, 'fsdp', 'tensor')
  assert spec((4, 6), 'inner', 'hidden') == ('tensor', None)                           # the second may not use it again
  assert spec((4, 7), 'width', 'inner') == ('fsdp', None)                              # 7 does not divide
  assert spec((8, 5, 3), 'batch', 'time', None) == (('data', 'fsdp'), None, None)
  with pytest.raises(ValueError, match="axis 'depth' has no rule; known: width"):
    spec((4,), 'depth')


def test_what_a_mesh_axis_does_not_divide_is_said():
  """Also where another axis took the mesh axis, or there is one of something, nothing is computed twice that could be once."""
  pod = jax.sharding.AbstractMesh((1, 2, 8, 1), mesh.AXES)
  declared = dict(w=Param((6, 16), ('width', 'inner')), square=Param((16, 5), ('inner', 'hidden')), keys=Param((1, 3), ('heads', None)))
  assert tuple(mesh.shardings(declared, pod)['w'].spec) == ('fsdp', 'tensor')           # warnings are errors here
  with pytest.warns(UserWarning, match='^mesh.tensor=8 does not divide 5 heads: each of these devices has the whole$'):
    mesh.shardings(dict(w=Param((5, 4), ('heads', None))), pod)


@pytest.mark.parametrize('config, devices, words', [
    (dict(tensor=3), 8, '2 x 1 x 3 x 1'), (dict(data=4), 8, 'there are 8 devices'), (dict(fsdp=0), 8, 'mesh.fsdp=0'), (dict(tensor=2), 1, 'there are 1 devices')])
def test_meshes_that_do_not_fit(config, devices, words):
  with pytest.raises(ValueError, match=words):
    mesh.MeshConfig(**config).sizes(devices)
  assert mesh.MeshConfig(fsdp=2).sizes(8) == (4, 2, 1, 1)


def test_precision_keeps_what_is_exponentiated():
  declared = dict(w=Param((2,), (None,)), decay=Param((2,), (None,), full_precision=True))
  params = init(jax.random.key(0), declared)
  cast = dtypes.cast(declared, params, jnp.dtype('bfloat16'))
  assert cast['w'].dtype == jnp.bfloat16 and cast['decay'].dtype == jnp.float32
  with pytest.raises(ValueError, match='float32, bfloat16'):
    dtypes.activation_dtype('float8')


def test_wrong_declarations():
  with pytest.raises(ValueError, match='2 sizes .* but 1 axis names'):
    Param((2, 3), ('width',))
  with pytest.raises(ValueError, match='initialiser of w returned shape'):
    init(jax.random.key(0), dict(w=Param((2,), (None,), lambda key, shape, layer: jnp.zeros((3,)))))
