"""The presets of the encoder family and of GPT-2 have the published numbers of parameters and load what their config.json says."""

import dataclasses

import jax
import pytest

import ssmlab
from ssmlab.core.params import size as count
from ssmlab.interop import bert as bert_files
from ssmlab.interop import gpt2 as gpt2_files
from ssmlab.interop import modernbert as modernbert_files
from ssmlab.layers.embedding import Classifier
from ssmlab.models.presets import bert

# Elements of the classes BertForMaskedLM, RobertaForMaskedLM, ModernBertForMaskedLM and GPT2LMHeadModel of transformers with the released
# config.json's (tied tensors once); google-bert/bert-base-uncased also holds a pooler and a next-sentence head: 110,106,428 in all.
CLASSES = [
    (bert.bert, 'base', 109_514_298), (bert.bert, 'large', 335_174_458), (bert.roberta, 'base', 124_697_433), (bert.roberta, 'large', 355_412_057),
    (bert.modernbert, 'base', 149_655_232), (bert.modernbert, 'large', 395_881_664), (bert.gpt2, '124M', 124_439_808), (bert.gpt2, '355M', 354_823_168),
    (bert.gpt2, '774M', 774_030_080), (bert.gpt2, '1.5B', 1_557_611_200)]

# Millions, as the papers and model cards have them: BERT, table 1 text; RoBERTa, README of the release; ModernBERT, section 2.3; MosaicBERT's
# card for base, reference/mosaicbert.md for large, which counts the trunk.
PUBLISHED = [(bert.bert, 'base', 110), (bert.roberta, 'base', 125), (bert.roberta, 'large', 355), (bert.mosaicbert, 'base', 137),
             (bert.modernbert, 'base', 149), (bert.modernbert, 'large', 395)]

BERT = dict(model_type='bert', vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
            hidden_act='gelu', hidden_dropout_prob=0.1, layer_norm_eps=1e-12, max_position_embeddings=512, type_vocab_size=2, initializer_range=0.02)
ROBERTA = BERT | dict(model_type='roberta', vocab_size=50265, layer_norm_eps=1e-5, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1)
MODERN = dict(model_type='modernbert', vocab_size=50368, hidden_size=768, num_hidden_layers=22, num_attention_heads=12, intermediate_size=1152,
              global_attn_every_n_layers=3, global_rope_theta=160000.0, local_rope_theta=10000.0, local_attention=128, hidden_activation='gelu')
GPT2 = dict(model_type='gpt2', vocab_size=50257, n_embd=768, n_head=12, n_layer=12, n_positions=1024, activation_function='gelu_new')


@pytest.mark.parametrize('preset, size, elements', CLASSES)
def test_elements(preset, size, elements):
  assert preset(size).size() == elements


@pytest.mark.parametrize('preset, size, millions', PUBLISHED)
def test_published(preset, size, millions):
  assert round(preset(size).size() / 1e6 + (0.0 if preset is not bert.modernbert else -0.5)) == millions       # ModernBERT's are cut, not rounded


def test_what_is_counted():
  """BERT's released file: pooler and next-sentence head on top.  MosaicBERT large: 434M without its head."""
  base = bert.bert('base')
  assert dataclasses.replace(base, classifier=Classifier(0)).size() + 2 * 768 + 2 == 110_106_428
  large = bert.mosaicbert('large')
  assert round((large.size() - count(large.head.params(large.vocab, large.width))) / 1e6) == 434


@pytest.mark.parametrize('ours, loaded', [
    (bert.bert('base'), bert_files.BERT.model(BERT, {})), (bert.roberta('base'), bert_files.ROBERTA.model(ROBERTA, {})),
    (bert.mosaicbert('base'), bert_files.MOSAICBERT.model(BERT | dict(vocab_size=30528), {})),
    (bert.modernbert('base'), modernbert_files.FORMAT.model(MODERN, {})), (bert.gpt2('124M'), gpt2_files.FORMAT.model(GPT2, {}))])
def test_the_preset_is_what_its_config_loads_as(ours, loaded):
  without = dict(pattern=(), channel=None)
  same = lambda model: [getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in without]
  assert ours.blocks == loaded.blocks and same(ours) == same(loaded)


def test_first_values():
  """Standard deviations: 0.02 everywhere in BERT; divided by sqrt(2 layers) for what writes to the residual stream of GPT-2 and ModernBERT."""
  small = lambda model: ssmlab.init(jax.random.key(0), dataclasses.replace(model, vocab=64, width=64).params())
  for model, scaled in ((bert.bert('base'), False), (bert.mosaicbert('base'), False), (bert.modernbert('base'), True), (bert.gpt2('124M'), True)):
    params, out = small(model), 0.02 / (2 * model.depth) ** 0.5 if scaled else 0.02
    for block in model.layers(params)[:2]:
      for part, name, wanted in (('mixer', 'w_q', 0.02), ('mixer', 'w_o', out), ('channel', 'w_up', 0.02), ('channel', 'w_down', out)):
        assert abs(float(block[part][name].std()) / wanted - 1) < 0.02, (type(model), name)
    assert abs(float(params['embedding']['table'].std()) / 0.02 - 1) < 0.05


def test_an_unknown_size_names_the_known():
  with pytest.raises(ValueError, match="mosaicbert: size 'small' is not one of base, large"):
    bert.mosaicbert('small')
  with pytest.raises(ValueError, match="gpt2: size 'xl' is not one of 124M, 355M, 774M, 1.5B"):
    bert.gpt2('xl')
