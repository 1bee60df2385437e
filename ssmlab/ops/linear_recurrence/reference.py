"""The linear recurrence as its definition reads: one token after another."""

import jax
import jax.numpy as jnp

Arrays = dict[str, jax.Array | None]


def step(state: jax.Array, token: Arrays, bonus: jax.Array | None) -> tuple[jax.Array, jax.Array]:
  """One token: (S_{t-1}, token t) -> (S_t, o_t).

  state: [batch, heads, key, value].  token: q, k, a, b [batch, heads, key]; v [batch, heads, value]; log_decay [batch, heads, key or 1];
  starts bool [batch], where a document begins; each of log_decay, a, b, starts may be None.
  """
  if token['starts'] is not None:
    state = jnp.where(token['starts'][:, None, None, None], 0, state)
  write = token['k'][..., :, None] * token['v'][..., None, :]
  after = write + (state if token['log_decay'] is None else jnp.exp(token['log_decay'])[..., None] * state)
  if token['a'] is not None:
    read = jnp.einsum('bhk,bhkv->bhv', token['a'], state, precision='highest')
    after = after + token['b'][..., :, None] * read[..., None, :]
  seen = after if bonus is None else state + bonus[:, :, None] * write
  return after, jnp.einsum('bhk,bhkv->bhv', token['q'], seen, precision='highest')


def sequential(tokens: Arrays, bonus: jax.Array | None, initial: jax.Array) -> tuple[jax.Array, jax.Array]:
  """o [batch, time, heads, value] and the final state, by `lax.scan` over time.

  tokens: the arrays of `step` with a time axis after batch, in float32 or float64.
  """
  if tokens['q'].shape[1] == 1:                         # decoding: one update, no loop
    state, o = step(initial, jax.tree.map(lambda x: x[:, 0], tokens), bonus)
    return o[:, None], state
  time_first = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens)
  state, o = jax.lax.scan(lambda s, token: step(s, token, bonus), initial, time_first)
  return jnp.moveaxis(o, 0, 1), state
