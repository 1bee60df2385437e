"""CALM: what a hidden state may see, states, documents, what is frozen, all heads, generation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.params import init
from ssmlab.eval.generate import generate
from ssmlab.eval.session import load_state, save_state
from ssmlab.eval.temperature import Chunks
from ssmlab.interop import pretrained
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.filters import ImplicitFilter
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.hyena import Hyena
from ssmlab.mixers.rwkv7 import RWKV7
from ssmlab.models import CALM, Autoencoder, Block
from ssmlab.models.calm import DiffusionHead, EnergyHead, FlowHead
from ssmlab.models.calm.autoencoder import floored_divergence
from ssmlab.tasks import NextVector

VOCAB, K = 31, 4
AUTOENCODER = Autoencoder(vocab=VOCAB, chunk=K, width=16, hidden=24, latent=8)
HEADS = [EnergyHead(blocks=1, noise=6, samples=3, targets=4), FlowHead(blocks=1, samples=2, intervals=3),
         DiffusionHead(blocks=1, samples=2, steps=20, sampling_steps=5)]
MLP = GatedMLP(hidden=24)
MODEL = CALM(vocab=VOCAB, width=16, depth=3, pattern=(Block(Attention(heads=2, head_dim=8), MLP), Block(RWKV7(head_dim=8), MLP)), autoencoder=AUTOENCODER,
             head=HEADS[0])


def drawn(model, seed: int = 0):
  """Parameters none of which is zero: fresh ones have heads that give zero."""
  params = init(jax.random.key(seed), model.params())
  leaves, tree = jax.tree.flatten(params)
  return jax.tree.unflatten(tree, [leaf + 0.1 * jax.random.normal(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)])


PARAMS = drawn(MODEL)
TOKENS = np.random.default_rng(0).integers(1, VOCAB, (2, 6 * K)).astype(np.int32)
HIDDEN = jax.jit(MODEL.hidden)


def test_a_hidden_state_sees_its_own_chunk_and_those_before():
  before, _ = HIDDEN(PARAMS, TOKENS)
  for inside in range(K):
    other = TOKENS.copy()
    other[0, 2 * K + inside] = (other[0, 2 * K + inside] + 1) % VOCAB
    change = np.abs(np.asarray(HIDDEN(PARAMS, other)[0] - before)).max(axis=-1)
    assert change[0, :2].max() == 0 and change[1].max() == 0
    assert change[0, 2:].min() > 1e-6


def test_calls_with_a_state_are_the_whole():
  whole, _ = HIDDEN(PARAMS, TOKENS)
  state, seen = MODEL.init_state(2, TOKENS.shape[1]), []
  for start, stop in ((0, 3 * K), (3 * K, 4 * K), (4 * K, 6 * K)):
    x, state = HIDDEN(PARAMS, TOKENS[:, start:stop], state)
    seen.append(x)
  np.testing.assert_allclose(jnp.concatenate(seen, axis=1), whole, atol=2e-5)


def test_packed_documents_are_the_documents_by_themselves():
  """The second begins inside the third chunk, which belongs to the first."""
  ids = np.ones((2, 6 * K), np.int32)
  ids[:, 2 * K + 2:] = 2
  packed, _ = HIDDEN(PARAMS, TOKENS, None, ids)
  first, _ = HIDDEN(PARAMS, TOKENS[:, :3 * K])
  second, _ = HIDDEN(PARAMS, TOKENS[:, 3 * K:])
  np.testing.assert_allclose(packed[:, :3], first, atol=2e-5)
  np.testing.assert_allclose(packed[:, 3:], second, atol=2e-5)


def test_the_loss_counts_chunks_that_a_chunk_of_their_document_precedes():
  ids = np.ones((2, 6 * K), np.int32)
  ids[0, 2 * K + 2:] = 2                                     # chunks 0 to 2, then 3 to 5: five of six have one before them, less the fourth
  ids[1, 4 * K + 1:] = 0                                     # the fifth chunk ends in padding
  batch = dict(tokens=TOKENS, segment_ids=ids)
  _, (count, sums) = NextVector().loss(MODEL, PARAMS, batch, jax.random.key(0))
  assert count == 4 + 3 and sums['tokens'] == np.sum(ids != 0)
  changed = TOKENS.copy()
  changed[1, 4 * K + 1:] = 5
  _, (_, other) = NextVector().loss(MODEL, PARAMS, dict(tokens=changed, segment_ids=ids), jax.random.key(0))
  np.testing.assert_allclose(other['loss'], sums['loss'], rtol=1e-6)


@pytest.mark.parametrize('head', HEADS, ids=lambda head: type(head).__name__)
def test_every_head_learns_and_the_autoencoder_does_not(head):
  """From the very first step, where all samples are zero, gradients are finite; later they reach every parameter but the autoencoder's."""
  model = dataclasses.replace(MODEL, head=head, depth=1)
  batch = dict(tokens=TOKENS, segment_ids=np.ones_like(TOKENS))
  gradient = jax.jit(jax.grad(lambda params: NextVector().loss(model, params, batch, jax.random.key(1))[0]))
  fresh = gradient(init(jax.random.key(0), model.params()))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fresh)) and np.any(fresh['head']['final']['last']['w'] if 'final' in fresh['head'] else
                                                                                   fresh['head']['last']['w'])
  found = gradient(drawn(model))
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(found.pop('autoencoder')))
  still = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(found) if not np.any(leaf)]
  assert not still, still
  declared = jax.tree.leaves(model.params()['autoencoder'], is_leaf=lambda x: hasattr(x, 'axes'))
  assert all(p.rate == 0 and not p.weight_decay for p in declared)
  assert model.size() == sum(leaf.size for name, part in model.shapes().items() if name != 'autoencoder' for leaf in jax.tree.leaves(part))


@pytest.mark.parametrize('head', HEADS, ids=lambda head: type(head).__name__)
def test_samples_depend_on_the_noise_and_on_nothing_else(head):
  model = dataclasses.replace(MODEL, head=head, depth=1)
  params, x = drawn(model), jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 16)), jnp.float32)
  noise = [head.draw_noise(jax.random.key(i), x.shape[:-1], AUTOENCODER.latent) for i in range(2)]
  one, same, other = (model.sample(params, x, n) for n in (noise[0], noise[0], noise[1]))
  assert one.shape == (2, 3, AUTOENCODER.latent) and one.dtype == jnp.float32 and np.isfinite(one).all()
  assert (one == same).all() and not np.allclose(one, other)
  np.testing.assert_allclose(model.sample(params, x[:, 1:2], noise[0][:, 1:2])[:, 0], one[:, 1], atol=2e-4)
  assert model.logits(params, x, noise[0]).shape == (2, 3, K, VOCAB)


def test_generation_with_a_state_is_generation_by_reading_everything_again():
  key, prompt = jax.random.key(5), TOKENS[:, :2 * K]
  rows, state = generate(MODEL, PARAMS, prompt, 2 * K, key=key)
  tokens = prompt
  for index in range(2):
    x, _ = HIDDEN(PARAMS, tokens)
    tokens = np.concatenate([tokens, MODEL.draw(PARAMS, x[:, -1], jax.random.fold_in(key, index))], axis=1)
  assert (rows == tokens[:, 2 * K:]).all()
  np.testing.assert_allclose(state['hidden'], HIDDEN(PARAMS, tokens)[0][:, -1], atol=2e-5)


def test_prompts_of_any_length():
  """What is over beyond whole chunks comes first in the chunk that is drawn; a row gives what it gives beside others of other lengths."""
  prompts = [TOKENS[0, :K + 3], TOKENS[1, :2 * K + 3]]
  both, _ = generate(MODEL, PARAMS, prompts, 2 * K, key=jax.random.key(3), draw=middle)
  for row, prompt in zip(both, prompts):
    tokens = prompt
    for _ in range(3):
      x, _ = HIDDEN(PARAMS, tokens[None, :len(tokens) // K * K])
      tokens = np.concatenate([tokens, np.asarray(middle(MODEL, PARAMS, x[:, -1], None))[0, len(tokens) % K:]])
    assert (row == tokens[len(prompt):len(prompt) + 2 * K]).all()
  with pytest.raises(ValueError, match='3 and 0 tokens beyond whole chunks of 4 cannot be continued together'):
    generate(MODEL, PARAMS, [TOKENS[0, :K + 3], TOKENS[1, :2 * K]], K)
  with pytest.raises(ValueError, match='a prompt of 3 tokens and no state to continue from: the first 4 must be given'):
    generate(MODEL, PARAMS, [TOKENS[0, :3]], K)
  with pytest.raises(ValueError, match='beyond the vocabulary of 31'):
    generate(MODEL, PARAMS, [[99] * K], K)


def middle(model, params, x, key):
  """The chunk that no noise gives: the same whatever has been drawn before."""
  return jnp.argmax(model.logits(params, x), axis=-1)


@pytest.mark.parametrize('first', [1, K - 1, K, K + 2])
def test_generation_goes_on_from_a_state_that_was_cut_anywhere(first, tmp_path):
  """Also inside a chunk, of which the state then holds no more than was given out; with new text, and from a file."""
  whole, _ = generate(MODEL, PARAMS, TOKENS[:, :K], 3 * K, draw=middle)
  begun, state = generate(MODEL, PARAMS, TOKENS[:, :K], first, draw=middle, max_length=8 * K)
  save_state(tmp_path / 's', state, model=MODEL)
  more, _ = generate(MODEL, PARAMS, [[], []], 3 * K - first, draw=middle, state=load_state(tmp_path / 's', model=MODEL))
  assert (np.concatenate([begun, more], axis=1) == whole).all()
  text = np.concatenate([TOKENS[:, :K], begun, TOKENS[:, :3]], axis=1)
  after, _ = generate(MODEL, PARAMS, TOKENS[:, :3], K, draw=middle, state=state)
  assert (after == generate(MODEL, PARAMS, text, K, draw=middle)[0]).all()


def test_the_padding_row_is_not_learned():
  model = dataclasses.replace(MODEL, padding=7, depth=1)
  tokens = TOKENS.copy()
  tokens[:, 3] = 7
  params = init(jax.random.key(0), model.params())
  assert not np.any(params['embedding']['table'][7])
  gradient = jax.grad(lambda params: jnp.sum(jnp.square(model.hidden(params, tokens)[0][..., 0])))(params)['embedding']['table']
  assert not np.any(gradient[7]) and np.any(gradient[tokens[0, 0]])


def test_checkpoints_come_back(tmp_path):
  block = Block(Attention(heads=2, head_dim=8, kv_heads=2, start=0.02, depth_scaled=False), GatedMLP(24, start=0.02, depth_scaled=False))
  for head in HEADS:
    kept = dict(steps=1000, sampling_steps=100) if isinstance(head, DiffusionHead) else dict(intervals=10) if isinstance(head, FlowHead) else dict(targets=100)
    model = dataclasses.replace(MODEL, pattern=(block,), depth=1, head=dataclasses.replace(head, **kept), padding=0)
    params = drawn(model)
    pretrained.save_pretrained(tmp_path / type(head).__name__, model, params, 'calm-lm')
    loaded, again, info = pretrained.load_pretrained(tmp_path / type(head).__name__)
    assert loaded == model and info['format'] == 'calm-lm' and not info['ignored']
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))
  model = dataclasses.replace(MODEL, pattern=(block,), depth=1)
  keys = set(pretrained.export(model, drawn(model), 'calm-lm'))
  assert {'mlp_generator.noise_embd.weight', 'generative_head.noise_embd.weight', 'ae_model.decoder.lm_head_weight'} <= keys


def test_the_autoencoder_of_a_checkpoint_comes_back(tmp_path):
  params = drawn(AUTOENCODER)
  pretrained.save_pretrained(tmp_path, AUTOENCODER, params, 'calm-autoencoder')
  model, again, _ = pretrained.load_pretrained(tmp_path)
  assert model == AUTOENCODER and jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))


def test_the_divergence_has_a_floor_for_every_element():
  mean, log_std = jnp.asarray([0.0, 2.0]), jnp.asarray([-0.1, -1.0])
  value, gradient = jax.value_and_grad(lambda m: jnp.sum(floored_divergence(m, log_std, 0.5)))(mean)
  exact = 0.5 * (2.0 ** 2 + np.exp(-2.0) - 1 + 2.0)
  np.testing.assert_allclose(value, 0.5 + exact, rtol=1e-6)
  assert gradient[0] == 0 and gradient[1] == 2


@pytest.mark.parametrize('change, said', [
    (dict(vocab=30), 'autoencoder.vocab=31 must be vocab=30'), (dict(padding=31), 'padding=31 must be an id below vocab=31')])
def test_configs_that_do_not_fit_are_refused(change, said):
  with pytest.raises(ValueError, match=said):
    dataclasses.replace(MODEL, **change)


def test_rows_that_are_no_multiple_of_a_chunk_are_refused():
  with pytest.raises(ValueError, match='23 tokens are not a multiple of chunk=4'):
    MODEL.hidden(PARAMS, TOKENS[:, :23])


def test_the_config_is_its_repr():
  names = {c.__name__: c for c in (CALM, Autoencoder, EnergyHead, Block, Attention, RWKV7, GatedMLP)}
  from ssmlab.layers.embedding import Embedding
  from ssmlab.layers.norms import RMSNorm
  assert eval(repr(MODEL), names | dict(Embedding=Embedding, RMSNorm=RMSNorm)) == MODEL


def test_a_temperature_is_the_samplers_and_probabilities_are_refused():
  prompt, key = TOKENS[:, :K + 1], jax.random.key(4)
  cold, _ = generate(MODEL, PARAMS, prompt, K, temperature=0.5, key=key)
  assert (cold == generate(MODEL, PARAMS, prompt, K, draw=Chunks(0.5), key=key)[0]).all()
  for options, said in ((dict(temperature=0), 'temperature=0 must be above 0'), (dict(temperature=0.6), 'temperature=0.6 with samples=200 must be 1/n'),
                        (dict(top_p=0.9), 'CALM has no probabilities: top_k=0 and top_p=0.9')):
    with pytest.raises(ValueError, match=said):
      generate(MODEL, PARAMS, prompt, K, **options)


def test_what_the_model_and_its_state_have_room_for():
  _, state = generate(MODEL, PARAMS, TOKENS[:, :K], K, max_length=2 * K)
  with pytest.raises(ValueError, match='a prompt of 0 tokens and 5 new ones are more than the 0 that the state has room for'):
    generate(MODEL, PARAMS, [[], []], 5, state=state)
  bounded = dataclasses.replace(MODEL, pattern=(Block(Hyena(ImplicitFilter(l_max=6, emb_dim=5, width=8)), MLP),), depth=1)
  params = drawn(bounded)
  tokens, _ = generate(bounded, params, TOKENS[:, :5 * K], K)              # no padding beyond what the filter reaches
  assert tokens.shape == (2, K)
  with pytest.raises(ValueError, match='are more than the 24 that the model can read'):
    generate(bounded, params, TOKENS[:, :5 * K], 2 * K)


def test_long_filters_are_made_once_for_generation():
  model = dataclasses.replace(MODEL, pattern=(Block(Hyena(ImplicitFilter(l_max=6, emb_dim=5, width=8)), MLP),), depth=1)
  made, turned = model.for_generation(6 * K)
  params = drawn(model)
  x = model.hidden(params, TOKENS)[0]
  assert made.pattern[0].mixer.filter != model.pattern[0].mixer.filter
  np.testing.assert_allclose(made.hidden(turned(params), TOKENS)[0], x, atol=2e-5)
