"""Rotary position embedding.  RoFormer, arXiv 2104.09864, eq. 34; RetNet's variant: arXiv 2307.08621, section 2.1."""

import jax
import jax.numpy as jnp
import numpy as np


def frequencies(size: int, theta: float = 10000.0) -> np.ndarray:
  """theta^(-2j/size), 0 <= 2j < size: radians per position.  float32 [ceil(size / 2)].

  An odd size, which a share of a small head may be, turns one feature more than `size`, as in transformers.
  """
  return (theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)).astype(np.float32)


def rotate(x: jax.Array, positions: jax.Array, radians: np.ndarray, interleaved: bool = False) -> jax.Array:
  """Each pair of features turned by position * radians; features beyond 2 * len(radians) pass unchanged.

  x: [batch, time, heads, head_dim].  positions: int32 [batch, time].  radians: float32 [pairs], 2 * pairs <= head_dim.
  interleaved: pairs are (0, 1), (2, 3), ... (RetNet, Meta's Llama files) instead of (j, j + pairs) (Hugging Face).
  Angles in float32 (float64 for float64 x): bfloat16 angles are noise beyond a few hundred positions.
  """
  pairs = len(radians)
  if 2 * pairs > x.shape[-1]:
    raise ValueError(f'rotary: {2 * pairs} features cannot be turned in a head of {x.shape[-1]}; an even head_dim is needed')
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  return turn(x, positions[..., None, None].astype(dtype) * jnp.asarray(radians, dtype), interleaved)


def turn(x: jax.Array, angle: jax.Array, interleaved: bool = False) -> jax.Array:
  """Each pair of features turned by its angle; features beyond the pairs pass unchanged.

  x: [..., head_dim].  angle: [..., pairs], radians, broadcasts against x.  interleaved: as for `rotate`.
  """
  pairs, dtype = angle.shape[-1], jnp.promote_types(x.dtype, jnp.float32)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  turned, rest = x[..., :2 * pairs].astype(dtype), x[..., 2 * pairs:]
  if interleaved:
    left, right = turned[..., 0::2], turned[..., 1::2]
    y = jnp.stack([left * cos - right * sin, right * cos + left * sin], axis=-1).reshape(turned.shape)
  else:
    left, right = turned[..., :pairs], turned[..., pairs:]
    y = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
  return jnp.concatenate([y.astype(x.dtype), rest], axis=-1)
