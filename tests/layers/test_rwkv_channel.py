"""RWKV's channel mixes look one token back: over calls, documents and padding."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.params import init
from ssmlab.layers.channel import RWKV6ChannelMix, RWKV7ChannelMix, RWKVChannelMix

WIDTH, TIME = 8, 9
IDS = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 3], [0, 0, 4, 4, 0, 4, 4, 0, 0]], np.int32)


@pytest.fixture(params=(RWKVChannelMix(12), RWKV6ChannelMix(12), RWKV7ChannelMix(12)), ids=lambda mix: type(mix).__name__)
def case(request):
  params = init(jax.random.key(0), request.param.params(WIDTH))
  params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape), params)
  return request.param, params, jax.random.normal(jax.random.key(1), (2, TIME, WIDTH))


def test_any_split_is_the_whole(case):
  mix, params, x = case
  whole, none = mix.apply(params, x)
  state, parts = mix.init_state(WIDTH, 2), []
  for begin, end in ((0, 4), (4, 5), (5, 9)):
    y, state = mix.apply(params, x[:, begin:end], state)
    parts.append(y)
  assert none is None
  chex.assert_trees_all_close(jnp.concatenate(parts, axis=1), whole, atol=1e-6)
  assert np.abs(whole[:, 1:] - mix.apply(params, x[:, 1:])[0]).max() > 1e-3        # the token before is read


def test_documents_are_apart_and_padding_is_nothing(case):
  mix, params, x = case
  packed, _ = mix.apply(params, x, segment_ids=IDS)
  for row, where in ((0, [0, 1, 2]), (0, [3, 4, 5, 6]), (0, [7, 8]), (1, [2, 3]), (1, [5, 6])):
    alone, _ = mix.apply(params, x[row:row + 1, where[0]:where[-1] + 1])
    chex.assert_trees_all_close(packed[row, where], alone[0], atol=1e-6)
