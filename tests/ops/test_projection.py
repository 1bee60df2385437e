"""A projection is x @ w, under every transformation of JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.ops.projection import project

X = jax.random.normal(jax.random.key(0), (2, 5, 3))
W = jax.random.normal(jax.random.key(1), (3, 4))


def loss(product, x, w):
  return jnp.sum(jnp.sin(product(x, w)) * jnp.cos(jnp.arange(4.0)))


WAYS = {
    'value': lambda f: f(X, W),
    'gradient': lambda f: jax.grad(f, argnums=(0, 1))(X, W),
    'compiled': lambda f: jax.jit(jax.grad(f, argnums=(0, 1)))(X, W),
    'forward mode': lambda f: jax.jvp(f, (X, W), (2 * X, W - 1)),
    'of a batch of inputs': lambda f: jax.vmap(jax.grad(f, argnums=(0, 1)), (0, None))(X, W),
    'of a batch of weights': lambda f: jax.vmap(jax.grad(f, argnums=(0, 1)), (None, 2))(X, jnp.stack([W, 2 * W], axis=2)),
    'of a batch of both': lambda f: jax.vmap(f, (1, 0))(X, jnp.stack([W] * 5)),
    'Hessian': lambda f: jax.hessian(f, argnums=1)(X, W),
    'gradient of a gradient': lambda f: jax.grad(lambda w: jnp.sum(jax.grad(f, argnums=1)(X, w) ** 2))(W),
    'recomputed': lambda f: jax.grad(jax.checkpoint(f), argnums=(0, 1))(X, W),
    'in a loop': lambda f: jax.grad(lambda w: jax.lax.scan(lambda c, x: (c * f(x, w), None), 1.0, X)[0])(W),
}


@pytest.mark.parametrize('way', WAYS)
def test_is_a_matrix_product(way):
  result, expected = (WAYS[way](functools.partial(loss, product)) for product in (project, jnp.matmul))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), result, expected)


def test_inside_shard_map():
  mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec
  def total(x, w):
    local = jax.shard_map(lambda x, w: jax.lax.psum(loss(project, x, w), 'data'), mesh=mesh, in_specs=(spec('data'), spec()), out_specs=spec())
    return local(x, w)
  result = jax.jit(jax.grad(total, argnums=(0, 1)))(X, W)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), result, jax.grad(functools.partial(loss, jnp.matmul), argnums=(0, 1))(X, W))


def test_the_weight_s_gradient_transposes_the_input():
  """What the primitive is for: in the gradient the first factor of the product for w is x, not the cotangent."""
  jaxpr = jax.make_jaxpr(jax.grad(lambda w: jnp.sum(jnp.sin(project(X, w)))))(W)
  last = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == 'dot_general'][-1]
  assert last.invars[0].aval.shape == X.shape and last.outvars[0].aval.shape == W.shape


def test_dtypes_and_shapes():
  assert project(X.astype(jnp.bfloat16), W).dtype == jnp.float32 and project(X.astype(jnp.bfloat16), W.astype(jnp.bfloat16)).dtype == jnp.bfloat16
  assert project(X[0, 0], W).shape == (4,)
  with pytest.raises(ValueError, match=r'x has shape \(2, 5, 3\), w \(4, 3\); expected'):
    project(X, W.T)
