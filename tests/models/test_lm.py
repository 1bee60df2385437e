"""The causal LM: invariances of remat, scan, splits and documents; what it refuses."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmlab
from ssmlab.layers.channel import GatedMLP, RWKV7ChannelMix
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.retention import Retention
from ssmlab.mixers.rglru import RGLRU
from ssmlab.mixers.rwkv7 import RWKV7
from ssmlab.models.stack import unstacked

TIME = 12
RWKV = ssmlab.LM(vocab=17, width=16, pattern=(RWKV7(8, 4, 4, 4, 4),), depth=3, channel=RWKV7ChannelMix(32), norm=LayerNorm(),
                 embedding=Embedding('uniform', 0.5, norm=LayerNorm()), head=Head(start='orthogonal'))
GRIFFIN = ssmlab.LM(vocab=17, width=16, pattern=(RGLRU(16, 2), RGLRU(16, 2), Attention(2, 8, window=5)), depth=5, channel=GatedMLP(24),
                    embedding=Embedding(size=0.5, scale=4.0), head=Head(tied=True, softcap=5.0))
MIXED = ssmlab.LM(vocab=17, width=16, pattern=(ssmlab.Block(Retention(2, 8), GatedMLP(24)), Attention(2, 8)), depth=3, embedding=Embedding(size=0.5))
MODELS = dict(rwkv=RWKV, griffin=GRIFFIN, mixed=MIXED)


def parameters(model):
  params = ssmlab.init(jax.random.key(0), model.params())
  return jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), params)


@pytest.fixture(scope='module', params=MODELS)
def case(request):
  model = MODELS[request.param]
  return model, parameters(model), jax.random.randint(jax.random.key(1), (2, TIME), 0, 17), jax.jit(model.apply)


def test_scan_is_the_plain_loop_over_blocks(case):
  model, params, tokens, apply = case
  x = model.embedding.apply(params['embedding'], tokens)
  carry = x, {k: v for b in model.blocks for k, v in b.mixer.signals(x).items()}
  for index, block in enumerate(model.blocks):
    repeat, place = divmod(index, len(model.pattern))
    inside = repeat < model.depth // len(model.pattern)
    mine = jax.tree.map(lambda a: a[repeat], params['blocks'][str(place)]) if inside else params['tail'][str(place)]
    (h, signals) = carry
    y, _, signals = block.mixer.apply_signals(mine['mixer'], model.norm.apply(mine['norm_mixer'], h), None, signals)
    h = h + y
    if block.channel:
      h = h + block.channel.apply(mine['channel'], model.norm.apply(mine['norm_channel'], h))[0]
    carry = h, signals
  logits = model.logits(params, model.norm.apply(params['norm'], carry[0]))
  chex.assert_trees_all_close(apply(params, tokens)[0], logits, atol=2e-5)


def test_unstacked_is_the_same_network(case):
  model, params, tokens, apply = case
  flat, mine = unstacked(model, params)
  chex.assert_trees_all_equal_shapes(mine, flat.shapes())
  assert flat.blocks == model.blocks and len(flat.pattern) == model.depth
  for split in (slice(0, 7), slice(7, TIME)):
    found = jax.jit(flat.apply)(mine, tokens[:, split], flat.init_state(2, TIME))
    expected = apply(params, tokens[:, split], model.init_state(2, TIME))
    chex.assert_trees_all_close(found[0], expected[0], atol=2e-5)
    chex.assert_trees_all_close(flat.layers(found[1]), model.layers(expected[1]), atol=2e-5)


def test_documents_that_change_between_calls(case):
  """The state knows which document it has read: a call that begins another one starts afresh, per row."""
  model, params, tokens, apply = case
  ids = jnp.array([[1] * 4 + [2] * 8, [3] * 6 + [4] * 2 + [0] * 4])
  whole, _ = apply(params, tokens, segment_ids=ids)
  for cut in (4, 6):
    first, state = apply(params, tokens[:, :cut], model.init_state(batch=2, max_length=TIME), ids[:, :cut])
    second, state = apply(params, tokens[:, cut:], state, ids[:, cut:])
    real = (ids > 0)[..., None]
    chex.assert_trees_all_close(jnp.concatenate([first, second], axis=1) * real, whole * real, atol=2e-5)
    assert state['segment'].tolist() == [2, 4]
  separate, _ = apply(params, jnp.roll(tokens, -4, axis=1))
  chex.assert_trees_all_close(whole[0, 4:], separate[0, :8], atol=2e-5)


def test_hidden_is_what_the_next_token_is_drawn_from(case):
  model, params, tokens, apply = case
  logits, state = apply(params, tokens, model.init_state(batch=2, max_length=TIME), jnp.array([[1] * TIME, [1] * 7 + [0] * 5]))
  from_state = model.logits(params, state['hidden'])
  chex.assert_trees_all_close(from_state, jnp.stack([logits[0, -1], logits[1, 6]]), atol=1e-5)


@pytest.mark.parametrize('remat', ['none', 'dots', 'offload'])
def test_remat_changes_no_gradient(remat):
  params, tokens = parameters(RWKV), jnp.arange(TIME)[None] % 17
  gradient = lambda model: jax.jit(jax.grad(lambda p: jnp.var(model.apply(p, tokens)[0])))(params)
  chex.assert_trees_all_close(gradient(dataclasses.replace(RWKV, remat=remat)), gradient(RWKV), atol=1e-6)


def test_bfloat16_activations_are_close_and_logits_float32():
  params, tokens = parameters(GRIFFIN), jnp.arange(TIME)[None] % 17
  exact, _ = GRIFFIN.apply(params, tokens)
  logits, _ = dataclasses.replace(GRIFFIN, activations='bfloat16').apply(params, tokens)
  assert logits.dtype == jnp.float32
  assert float(jnp.abs(logits - exact).max()) < 0.05 * float(jnp.abs(exact).max())


def test_parameters_are_drawn_by_path_and_layer():
  """Another layer, or another field elsewhere, leaves what is there as it was; layers differ from one another."""
  shallow = ssmlab.init(jax.random.key(0), dataclasses.replace(MIXED, depth=2).params())
  deep = ssmlab.init(jax.random.key(0), dataclasses.replace(MIXED, depth=4).params())
  w = lambda tree: tree['blocks']['0']['mixer']['w_q']
  assert (w(shallow)[0] == w(deep)[0]).all() and not (w(deep)[0] == w(deep)[1]).any()
  tied = ssmlab.init(jax.random.key(0), dataclasses.replace(MIXED, head=Head(tied=True)).params())
  chex.assert_trees_all_equal(tied['blocks'], ssmlab.init(jax.random.key(0), MIXED.params())['blocks'])


def test_authors_start_depends_on_depth():
  """RWKV-7's decay and mixing coefficients of layer l of L are those of the formula, also through the stacked declaration."""
  params = ssmlab.init(jax.random.key(0), RWKV.params())['blocks']['0']['mixer']
  channel = np.arange(16) / 16
  for layer in range(3):
    np.testing.assert_allclose(params['x_r'][layer], 1 - channel ** (0.2 * (1 - layer / 3)), rtol=1e-5)
    np.testing.assert_allclose(params['norm_scale'][layer], ((1 + layer) / 3) ** 0.7, rtol=1e-6)


def test_size_flops_and_state_bytes():
  shapes = jax.tree.leaves(RWKV.shapes())
  assert RWKV.size() == sum(s.size for s in shapes)
  assert RWKV.flops(64) == RWKV.flops(128) and MIXED.flops(128) > MIXED.flops(64)
  assert RWKV.state_bytes(64) == RWKV.state_bytes(4096) and MIXED.state_bytes(4096) > MIXED.state_bytes(64)


@pytest.mark.parametrize('change, message', [
    (dict(depth=0), 'depth=0'), (dict(pattern=()), 'pattern is empty'), (dict(remat='all'), 'none, block, dots'),
    (dict(activations='float16'), 'float32, bfloat16')])
def test_refusals(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(RWKV, **change)


def test_first_non_finite_names_the_layer():
  params = parameters(GRIFFIN)
  tokens = jnp.zeros((1, 4), jnp.int32)
  assert GRIFFIN.first_non_finite(params, tokens) is None
  broken = jax.tree.map(lambda a: a, params)
  broken['blocks']['2']['mixer']['w_o'] = broken['blocks']['2']['mixer']['w_o'].at[0, 0, 0].set(jnp.nan)
  assert GRIFFIN.first_non_finite(broken, tokens) == 'block 2 (Attention)'
  broken = dict(params, tail={'0': params['tail']['0'], '1': jax.tree.map(lambda a: a * jnp.inf, params['tail']['1'])})
  assert GRIFFIN.first_non_finite(broken, tokens) == 'block 4 (RGLRU)'
