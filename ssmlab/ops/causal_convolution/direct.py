"""Causal convolution by its definition, lag by lag.  Rows are [batch, channels, shared, time], filters [channels, 1, taps]."""

import jax
import jax.numpy as jnp

_UNROLLED = 32          # more taps than this go through a loop, which compiles in constant time


def forward(u: jax.Array, h: jax.Array) -> jax.Array:
  """y[t] = sum_k h[k] u[t - k]."""
  time, taps = u.shape[-1], h.shape[-1]
  line = jnp.pad(u, ((0, 0),) * 3 + ((taps, 0),))
  if taps <= _UNROLLED:
    return sum(h[..., k:k + 1] * line[..., taps - k:taps - k + time] for k in range(taps))
  lag = lambda k, y: y + jax.lax.dynamic_slice_in_dim(h, k, 1, axis=-1) * jax.lax.dynamic_slice_in_dim(line, taps - k, time, axis=-1)
  return jax.lax.fori_loop(0, taps, lag, jnp.zeros_like(u))


def backward(u: jax.Array, h: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
  """du[j] = sum_k h[k] dy[j + k] and dh[k] = sum over batch, shared axes and t of dy[t] u[t - k]."""
  time, taps = u.shape[-1], h.shape[-1]
  line = jnp.pad(u, ((0, 0),) * 3 + ((taps, 0),))
  du = jnp.flip(forward(jnp.flip(dy, -1), h), -1)
  one = lambda k: jnp.sum(dy * jax.lax.dynamic_slice_in_dim(line, taps - k, time, axis=-1), axis=(0, 2, 3))
  return du, jax.lax.map(one, jnp.arange(taps)).T[:, None]
