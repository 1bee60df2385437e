"""The linear recurrence as one associative scan over tokens: a second, independent form to test the others against.

It holds a state per token, and with the rank-one term a [key, key] transition matrix per token: short inputs only.
"""

import jax
import jax.numpy as jnp

from ssmlab.ops.linear_recurrence.reference import Arrays

_einsum = lambda spec, *arrays: jnp.einsum(spec, *arrays, precision='highest')


def associative(tokens: Arrays, bonus: jax.Array | None, initial: jax.Array) -> tuple[jax.Array, jax.Array]:
  """o [batch, time, heads, value] and the final state.  Arguments as in `reference.sequential`."""
  write = _einsum('bthk,bthv->bthkv', tokens['k'], tokens['v'])
  combine, moves = (_combine_diagonal, _decays) if tokens['a'] is None else (_combine_matrix, _matrices)
  transition = moves(tokens)
  first = _apply(transition[:, 0], initial)
  states = jax.lax.associative_scan(combine, (transition, write.at[:, 0].add(first)), axis=1)[1]
  if bonus is None:
    seen = states
  else:
    before = jnp.concatenate([initial[:, None], states[:, :-1]], axis=1)
    if tokens['starts'] is not None:
      before = jnp.where(tokens['starts'][:, :, None, None, None], 0, before)
    seen = before + bonus[:, :, None] * write
  return _einsum('bthk,bthkv->bthv', tokens['q'], seen), states[:, -1]


def _decays(tokens: Arrays) -> jax.Array:
  """[batch, time, heads, key, 1], what each state row is multiplied with; 0 at a document start."""
  log_decay = jnp.zeros_like(tokens['q']) if tokens['log_decay'] is None else tokens['log_decay']
  decay = jnp.broadcast_to(jnp.exp(log_decay), tokens['q'].shape)[..., None]
  return decay if tokens['starts'] is None else jnp.where(tokens['starts'][:, :, None, None, None], 0, decay)


def _matrices(tokens: Arrays) -> jax.Array:
  """[batch, time, heads, key, key], diag(exp g_t) + b_t (x) a_t; 0 at a document start."""
  diagonal = _decays(tokens) * jnp.eye(tokens['q'].shape[-1], dtype=tokens['q'].dtype)
  rank_one = _einsum('bthk,bthj->bthkj', tokens['b'], tokens['a'])
  if tokens['starts'] is not None:
    rank_one = jnp.where(tokens['starts'][:, :, None, None, None], 0, rank_one)
  return diagonal + rank_one


def _apply(transition: jax.Array, state: jax.Array) -> jax.Array:
  return transition * state if transition.shape[-1] == 1 else transition @ state


def _combine_diagonal(earlier, later):
  return later[0] * earlier[0], later[0] * earlier[1] + later[1]


def _combine_matrix(earlier, later):
  return (_einsum('...ij,...jk->...ik', later[0], earlier[0]), _einsum('...ij,...jv->...iv', later[0], earlier[1]) + later[1])
