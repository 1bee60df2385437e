"""x @ w as a primitive of its own, for the sake of its gradient.

JAX transposes x @ w with respect to w as (g^T x)^T, and XLA CPU then writes g^T to memory token by token, together with whatever elementwise
function computes g; here the narrower of x and g is transposed, x where they are equal, which several weights may share.  A primitive rather than a
custom_vjp, so that forward mode, vmap and derivatives of derivatives stay as they are; on every platform it lowers to jnp.matmul.
"""

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def project(x: jax.Array, w: jax.Array) -> jax.Array:
  """x @ w.  x: [..., in].  w: [in, out].  Returns [..., out] in the dtype of jnp.matmul.  Raises ValueError for other shapes."""
  if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[0]:
    raise ValueError(f'project: x has shape {x.shape}, w {w.shape}; expected [..., in] and [in, out]')
  if jax.typeof(x).manual_axis_type.varying or jax.typeof(w).manual_axis_type.varying:      # inside shard_map, whose types a primitive would have to follow
    return jnp.matmul(x, w)
  dtype = jnp.result_type(x, w)
  return _project.bind(x.astype(dtype), w.astype(dtype))


def _batched(arrays, axes):
  (x, w), (x_axis, w_axis) = arrays, axes
  if w_axis is None:
    return project(jnp.moveaxis(x, x_axis, 0), w), 0
  return jax.vmap(jnp.matmul, in_axes=(x_axis, w_axis))(x, w), 0


def _by_weight(g: jax.Array, x: jax.Array, w) -> jax.Array:
  axes = (tuple(range(x.ndim - 1)),) * 2, ((), ())
  return jax.lax.dot_general(x, g, axes) if x.shape[-1] <= g.shape[-1] else jax.lax.dot_general(g, x, axes).T


_project = Primitive('project')
_project.def_impl(jax.jit(jnp.matmul))
_project.def_abstract_eval(lambda x, w: x.update(shape=(*x.shape[:-1], w.shape[1]), weak_type=False))
mlir.register_lowering(_project, mlir.lower_fun(jnp.matmul, multiple_results=False))
batching.primitive_batchers[_project] = _batched
ad.defbilinear(_project, lambda g, x, w: project(g, w.T), _by_weight)
