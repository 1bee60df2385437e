"""The encoder: packed and padded documents, dropout, the scan against a plain loop, other mixers, what it refuses."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmlab
from ssmlab.core.config import UserError
from ssmlab.data import Bytes, Documents
from ssmlab.layers.channel import MLP, GatedMLP
from ssmlab.layers.embedding import Classifier, Embedding, MaskedHead
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers import rglru
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.bidirectional import Bidirectional
from ssmlab.models.encoder import padded_vocab
from ssmlab.models.stack import unstacked
from ssmlab.tasks import Classify, MaskedLM
from ssmlab.train import Experiment

TIME, VOCAB, WIDTH = 14, 19, 16
PLAIN = Attention(2, 8, bias=True, output_bias=True, causal=False, rotary_fraction=0.0)
BERT = ssmlab.Encoder(VOCAB, WIDTH, (PLAIN,), 2, MLP(24), embedding=Embedding(norm=LayerNorm(1e-12), positions=TIME, offset=2, types=2),
                      classifier=Classifier(3))
MOSAIC = ssmlab.Encoder(VOCAB, WIDTH, (dataclasses.replace(PLAIN, alibi=True),), 2, GatedMLP(24, 'gelu', output_bias=True, dropout=0.1),
                        embedding=Embedding(norm=LayerNorm(1e-12), types=2), embedding_dropout=0.1, mixer_dropout=0.1, classifier=Classifier(2, pooling='mean'))
SLIM = LayerNorm(1e-5, bias=False)
MODERN = ssmlab.Encoder(VOCAB, WIDTH, (Attention(2, 8, causal=False, theta=160000.0), Attention(2, 8, causal=False, window=3)), 4,
                        GatedMLP(24, 'gelu'), SLIM, post_norm=False, first_norm=False, embedding=Embedding(norm=SLIM),
                        head=MaskedHead(SLIM, dense_bias=False))
RECURRENT = dataclasses.replace(MOSAIC, pattern=(Bidirectional(rglru.TINY),))
MODELS = dict(bert=BERT, mosaic=MOSAIC, modern=MODERN, recurrent=RECURRENT)
# Three documents a row; padding before, between and after.
IDS = np.array([[1] * 5 + [2] * 6 + [3] * 3, [0] + [4] * 4 + [0] * 2 + [6] * 5 + [0] * 2], np.int32)
DOCUMENTS = ((0, 0, 5), (0, 5, 11), (0, 11, 14), (1, 1, 5), (1, 7, 12))


class Case:
  def __init__(self, model):
    self.model = model
    self.params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), ssmlab.init(jax.random.key(0), model.params()))
    self.tokens, self.types = np.random.default_rng(0).integers(0, VOCAB, (2, TIME)), np.tile(np.arange(TIME) % 2, (2, 1))
    self.apply = jax.jit(lambda params, tokens, ids, types, key: model.apply(params, tokens, None, ids, types=types, key=key)[0])

  def __call__(self, tokens=None, ids=None, types=None, key=None):
    return self.apply(self.params, self.tokens if tokens is None else tokens, ids, self.types if types is None else types, key)


@pytest.fixture(scope='module', params=MODELS)
def case(request):
  return Case(MODELS[request.param])


def close(a, b):
  chex.assert_trees_all_close(a, b, atol=2e-5 * max(float(jnp.abs(b).max()), 1), rtol=0)


def alone(case, row, begin, end):
  """The document by itself at the left of a padded row: (tokens, segment ids, types)."""
  rows = np.zeros((3, 2, TIME), np.int32)
  rows[0] += 7                                                                 # padding need not be zeros
  rows[0, 0, :end - begin], rows[1, 0, :end - begin], rows[2, 0, :end - begin] = case.tokens[row, begin:end], 1, case.types[row, begin:end]
  return rows


def test_packed_is_padded(case):
  packed = case(ids=IDS)
  for row, begin, end in DOCUMENTS:
    close(packed[row, begin:end], case(*alone(case, row, begin, end))[0, :end - begin])
  close(case(ids=np.ones_like(IDS)), case())


def test_classes_of_packed_documents_are_those_of_padded_ones():
  for model in (BERT, MOSAIC):
    case = Case(model)
    classify = jax.jit(lambda params, tokens, ids, types: model.classify(params, tokens, ids, types=types, documents=3))
    packed = classify(case.params, case.tokens, IDS, case.types)
    assert packed.shape == (2, 3, model.classifier.labels)
    for (row, begin, end), number in zip(DOCUMENTS, (0, 1, 2, 0, 1)):
      close(packed[row, number], classify(case.params, *alone(case, row, begin, end))[0, 0])


def test_a_token_sees_both_sides_of_its_document_only(case):
  x = jax.random.normal(jax.random.key(1), (VOCAB, WIDTH))
  read = jax.jit(jax.grad(lambda table, row, at: jnp.sum(jnp.sin(
      case.model.apply(case.params | dict(embedding=case.params['embedding'] | dict(table=table)), case.tokens, None, IDS)[0][row, at, 0]))))
  tokens, case.tokens = case.tokens, np.arange(2 * TIME).reshape(2, TIME) % VOCAB              # each id once in a row
  model, case.model = case.model, dataclasses.replace(case.model, head=dataclasses.replace(case.model.head, tied=False))
  weight = jax.random.normal(jax.random.key(2), (WIDTH, VOCAB))
  case.params['head']['weight'] = weight
  for row, begin, end in DOCUMENTS[:2]:
    reach = np.abs(read(x, row, begin + 2)).max(axis=-1)
    seen = case.tokens[row, begin:end]
    assert (reach[seen] > 0).all() and not np.delete(reach, seen).any()
  del case.params['head']['weight']
  case.tokens, case.model = tokens, model


def test_scan_is_the_plain_loop(case):
  """Written out once more, without keys, groups and scan."""
  model, norm = case.model, case.model.norm
  positions = np.tile(np.arange(TIME), (2, 1))
  x = model.embedding.apply(case.params['embedding'], case.tokens, positions, case.types)
  for index, (block, mine) in enumerate(zip(model.blocks, model.layers(case.params), strict=True)):
    for name, part in (('mixer', block.mixer), ('channel', block.channel)):
      if model.post_norm:
        x = norm.apply(mine[f'norm_{name}'], x + part.apply(mine[name], x)[0])
      else:
        first = index == 0 and name == 'mixer'
        x = x + part.apply(mine[name], x if first else norm.apply(mine[f'norm_{name}'], x))[0]
  x = x if model.post_norm else norm.apply(case.params['norm'], x)
  close(case(), model.logits(case.params, x))


def test_unstacked_is_the_same_network(case):
  """Also where the lowest block stands alone, and with dropout, which goes by the layer."""
  flat, params = unstacked(case.model, case.params)
  chex.assert_trees_all_equal_shapes(params, flat.shapes())
  key = jax.random.key(5)
  close(jax.jit(lambda params: flat.apply(params, case.tokens, None, IDS, types=case.types, key=key)[0])(params), case(ids=IDS, key=key))


def test_dropout_is_the_keys():
  case = Case(dataclasses.replace(MOSAIC, channel_dropout=0.2))
  one, again, other = (case(key=jax.random.key(seed)) for seed in (0, 0, 1))
  assert (one == again).all() and (one != other).any() and (one != case()).any()
  silent = Case(dataclasses.replace(MOSAIC, embedding_dropout=0.0, mixer_dropout=0.0, channel=GatedMLP(24, 'gelu', output_bias=True)))
  assert (silent(key=jax.random.key(0)) == silent()).all()


@pytest.mark.parametrize('change', (dict(embedding_dropout=0.3), dict(mixer_dropout=0.3), dict(channel_dropout=0.3),
                                    dict(channel=GatedMLP(24, 'gelu', output_bias=True, dropout=0.3))))
def test_every_dropout_is_read(change):
  silent = dict(embedding_dropout=0.0, mixer_dropout=0.0, channel=GatedMLP(24, 'gelu', output_bias=True))
  case = Case(dataclasses.replace(MOSAIC, **(silent | change)))
  assert (case(key=jax.random.key(0)) != case()).any()


def test_bfloat16_is_close_and_a_constant_row_is_finite(case):
  wide = case()
  narrow = Case(dataclasses.replace(case.model, activations='bfloat16'))()
  assert narrow.dtype == jnp.float32 and float(jnp.sqrt(jnp.mean((narrow - wide) ** 2) / jnp.mean(wide ** 2))) < 0.05
  flat = jnp.ones((2, WIDTH), jnp.bfloat16)                                    # variance 0, eps 1e-12
  norm = LayerNorm(1e-12)
  assert not norm.apply(ssmlab.init(jax.random.key(0), norm.params(WIDTH)), flat).any()


def test_remat_changes_nothing(case):
  gradients = []
  for remat in ('none', 'block'):
    model = dataclasses.replace(case.model, remat=remat)
    loss = lambda params: jnp.sum(jnp.sin(model.apply(params, case.tokens, None, IDS, key=jax.random.key(3))[0]))
    gradients.append(jax.jit(jax.grad(loss))(case.params))
  jax.tree.map(close, *gradients)


def test_a_non_finite_layer_is_named():
  case = Case(MODERN)
  params = jax.tree.map(lambda a: a, case.params)
  assert MODERN.first_non_finite(params, case.tokens, IDS) is None
  params['blocks']['1']['channel']['w_up'] = params['blocks']['1']['channel']['w_up'].at[0].set(jnp.inf)
  assert MODERN.first_non_finite(params, case.tokens, IDS) == 'block 2 (Attention)'


def test_refusals():
  with pytest.raises(ValueError, match='Attention reads in one direction'):
    dataclasses.replace(BERT, pattern=(Attention(2, 8),))
  with pytest.raises(ValueError, match='first_norm=False needs post_norm=False'):
    dataclasses.replace(BERT, first_norm=False)
  with pytest.raises(ValueError, match='15 tokens, but embedding.positions=14'):
    BERT.apply(Case(BERT).params, np.zeros((1, 15), int))
  with pytest.raises(ValueError, match='state must be None'):
    BERT.apply({}, np.zeros((1, 3), int), state={})
  with pytest.raises(ValueError, match='classifier is None'):
    MODERN.classify({}, np.zeros((1, 3), int))
  with pytest.raises(ValueError, match="pooling='last' is not one of first, mean"):
    Classifier(2, pooling='last')


def test_costs():
  assert padded_vocab(30522) == 30528 and padded_vocab(64) == 64
  assert BERT.state_bytes(9) is None and eval(repr(MODERN), vars(ssmlab) | globals()) == MODERN
  matrices = 2 * (4 * 16 * 16 + 3 * 16 * 24)                                    # windows see 2 * 3 - 1 keys
  blocks, head = 4 * matrices + 4 * 16 * (100 + 5 + 100 + 5), 2 * (VOCAB * WIDTH + WIDTH ** 2)
  assert MODERN.flops(100) == blocks + head
  experiment = Experiment(MODERN, data=Documents(tokenizer=Bytes(), length=100, most=50), task=MaskedLM(mask=1, ratio=0.15))
  assert experiment.flops() == blocks + 0.23 * head                             # 15 slots of 100 and two standard deviations of 3.6
  assert dataclasses.replace(experiment, task=Classify()).flops() == blocks


def test_no_text_is_continued():
  with pytest.raises(ValueError, match='reads in both directions'):
    ssmlab.generate(MODERN, {}, [[1, 2]], 3)


def test_documents_longer_than_the_table_are_refused():
  data = Documents(tokenizer=Bytes(), length=32, most=20)
  with pytest.raises(UserError, match='up to 20 tokens .data.most., but the model can read 14'):
    Experiment(dataclasses.replace(BERT, vocab=320), data, MaskedLM(256)).check(1)
