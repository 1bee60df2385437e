"""The delta rule against its definition in float64, written token by token."""

import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.ops.delta_rule import delta_rule


def definition(q, k, v, beta, log_decay, state):
  unit = lambda x: x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + 1e-6)
  q, k = (np.repeat(unit(x), v.shape[2] // x.shape[2], axis=2) for x in (q, k))
  out = []
  for t in range(v.shape[1]):
    decay = np.exp(log_decay[:, t])
    state = state * (decay[..., None] if decay.ndim == 3 else decay[..., None, None])
    error = beta[:, t, :, None] * (v[:, t] - np.einsum('bhk,bhkv->bhv', k[:, t], state))
    state = state + np.einsum('bhk,bhv->bhkv', k[:, t], error)
    out.append(np.einsum('bhk,bhkv->bhv', q[:, t], state) * q.shape[-1] ** -0.5)
  return np.stack(out, axis=1), state


@pytest.mark.parametrize('decay', ['none', 'head', 'channel'])
@pytest.mark.parametrize('time', [1, 21])
def test_is_its_definition(decay, time):
  draw = np.random.default_rng(0)
  q, k = (draw.normal(size=(2, time, 2, 5)) for _ in 'qk')
  v, beta, state = draw.normal(size=(2, time, 6, 3)), draw.uniform(0, 2, (2, time, 6)), draw.normal(size=(2, 6, 5, 3))
  log_decay = {'none': np.zeros((2, time, 6)), 'head': -draw.exponential(size=(2, time, 6)), 'channel': -draw.exponential(size=(2, time, 6, 5))}[decay]
  wide = lambda x: jnp.asarray(x, jnp.float32)
  o, last = delta_rule(wide(q), wide(k), wide(v), wide(beta), None if decay == 'none' else wide(log_decay), initial=wide(state))
  expected, expected_last = definition(q, k, v, beta, log_decay, state)
  np.testing.assert_allclose(o, expected, atol=1e-5 * np.abs(expected).max())
  np.testing.assert_allclose(last, expected_last, atol=1e-5 * np.abs(expected_last).max())


def test_heads_that_do_not_divide_are_named():
  with pytest.raises(ValueError, match='5 heads, not a multiple of the 2'):
    delta_rule(jnp.zeros((1, 2, 2, 4)), jnp.zeros((1, 2, 2, 4)), jnp.zeros((1, 2, 5, 3)), jnp.zeros((1, 2, 5)))
