"""Encoders and GPT-2 of published files: round trips, files of several ages and classes, what is refused."""

import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ssmlab
from ssmlab.core.config import UserError
from ssmlab.interop import pretrained
from ssmlab.models.encoder import Encoder

DATA = pathlib.Path(__file__).parents[1] / 'golden' / 'data'
SYSTEMS = {'bert': 'bert-hf-small', 'roberta': 'roberta-hf-small', 'mosaicbert': 'mosaicbert', 'modernbert': 'modernbert-hf-small', 'gpt2': 'gpt2-hf-small'}


def golden(name: str) -> tuple[dict, dict[str, np.ndarray]]:
  """(config.json, parameters)."""
  path = DATA / SYSTEMS[name]
  meta, tensors = json.loads(path.with_suffix('.json').read_text()), load_file(path.with_suffix('.safetensors'))
  return {'model_type': 'bert'} | meta['config'], {key.removeprefix('param/'): value for key, value in tensors.items() if key.startswith('param/')}


def build(name: str, config: dict, tensors: dict):
  return pretrained.build(name, config, tensors, 'test')


def equal(one, other) -> bool:
  return jax.tree.structure(one) == jax.tree.structure(other) and all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


@pytest.mark.parametrize('name', SYSTEMS)
def test_round_trip(name, tmp_path):
  """Folder -> tree -> the authors' tensors, bit for bit; and the folder that we write loads to the same."""
  config, tensors = golden(name)
  save_file(tensors, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text(json.dumps(config))
  model, params, info = ssmlab.load_pretrained(tmp_path)
  assert info['format'] == name and not info['ignored'] and isinstance(model, Encoder) == (name != 'gpt2')
  out = pretrained.export(model, params, name)
  assert set(out) == set(tensors)
  for key, value in out.items():
    np.testing.assert_array_equal(value, tensors[key], strict=True, err_msg=key)
  pretrained.save_pretrained(tmp_path / 'ours', model, params, name)
  again, same, info = ssmlab.load_pretrained(tmp_path / 'ours')
  assert again == model and equal(same, params) and info['format'] == name


@pytest.mark.parametrize('name', SYSTEMS)
def test_a_missing_and_an_unexpected_tensor_are_named(name):
  config, tensors = golden(name)
  for key in tensors:
    if key.endswith(('pooler.dense.weight', 'classifier.dense.weight', 'head.dense.weight', 'transform.dense.weight', 'lm_head.dense.weight')):
      with pytest.raises(UserError, match='unexpected tensor'):                   # that part is not in the model, and its other tensors stand alone
        build(name, config, {k: v for k, v in tensors.items() if k != key})
    elif key not in ('classifier.weight', 'classifier.out_proj.weight'):
      with pytest.raises(UserError, match='is missing'):
        build(name, config, {k: v for k, v in tensors.items() if k != key})
  with pytest.raises(UserError, match="unexpected tensor 'model.layers.9.what'"):
    build(name, config, tensors | {'model.layers.9.what': np.zeros(3, np.float32)})


def test_old_and_bare_files():
  """gamma and beta; a next-sentence head; a trunk without prefix and head; the decoder's bias under its other name; Composer's prefix."""
  config, tensors = golden('bert')
  expected = build('bert', config, tensors)[1]
  old = {key.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): value for key, value in tensors.items()}
  old |= {'cls.seq_relationship.weight': np.zeros((2, 16), np.float32), 'bert.embeddings.position_ids': np.arange(20)[None],
          'cls.predictions.decoder.weight': tensors['bert.embeddings.word_embeddings.weight']}
  _, params, ignored = build('bert', config, old)
  assert equal(params, expected) and len(ignored) == 3
  bare = {key.removeprefix('bert.'): value for key, value in tensors.items() if key.startswith('bert.')}
  model, params, _ = build('bert', config, bare)
  assert model.head is None and model.classifier.labels == 0 and equal(params['blocks'], expected['blocks'])
  other = {key.replace('cls.predictions.bias', 'cls.predictions.decoder.bias'): value for key, value in tensors.items()}
  assert equal(build('bert', config, other)[1], expected)
  config, tensors = golden('mosaicbert')
  composer = {f'model.{key}': value for key, value in tensors.items()}
  assert equal(build('mosaicbert', config, composer)[1], build('mosaicbert', config, tensors)[1])
  config, tensors = golden('gpt2')
  hub = {key.removeprefix('transformer.'): value for key, value in tensors.items()} | {'h.0.attn.bias': np.ones((1, 1, 24, 24), np.float32)}
  _, params, ignored = build('gpt2', config, hub)
  assert equal(params, build('gpt2', config, tensors)[1]) and ignored == ['transformer.h.0.attn.bias']


def test_modernbert_as_published():
  """Rotary bases and layers in the older words."""
  config, tensors = golden('modernbert')
  old = {key: value for key, value in config.items() if key not in ('rope_parameters', 'layer_types')}
  assert build('modernbert', old | dict(global_rope_theta=160000.0, local_rope_theta=10000.0), tensors)[0] == build('modernbert', config, tensors)[0]
  mixers = [block.mixer for block in build('modernbert', config, tensors)[0].blocks]
  assert [(m.theta, m.window) for m in mixers] == [(160000.0, None), (10000.0, 5), (10000.0, 5), (160000.0, None)]
  with pytest.raises(UserError, match="must be 4 of 'full_attention', 'sliding_attention'"):
    build('modernbert', config | dict(layer_types=['full_attention'] * 3), tensors)


def test_an_untied_head():
  config, tensors = golden('bert')
  weight = np.random.default_rng(0).normal(size=(61, 16)).astype(np.float32)
  model, params, _ = build('bert', config, tensors | {'cls.predictions.decoder.weight': weight})
  assert not model.head.tied and np.array_equal(params['head']['weight'].T, weight)
  assert np.array_equal(pretrained.export(model, params, 'bert')['cls.predictions.decoder.weight'], weight)


@pytest.mark.parametrize('name, field, value', [('bert', 'position_embedding_type', 'relative_key'), ('bert', 'hidden_act', 'mish'),
                                                ('gpt2', 'scale_attn_by_inverse_layer_idx', True), ('modernbert', 'decoder_bias', False)])
def test_what_cannot_be_computed_is_refused(name, field, value):
  config, tensors = golden(name)
  with pytest.raises(UserError, match=f'{field}={value!r} is not supported'):
    build(name, config | {field: value}, tensors)


def test_gpt2_has_as_many_positions_as_its_table():
  config, tensors = golden('gpt2')
  model, params, _ = build('gpt2', config, tensors)
  with pytest.raises(ValueError, match='25 tokens, but embedding.positions=24'):
    model.apply(params, np.zeros((1, 25), np.int32))


def test_gpt2_decodes_to_the_end_of_its_table_and_no_further():
  config, tensors = golden('gpt2')
  model, params, _ = build('gpt2', config, tensors)
  first, state = ssmlab.generate(model, params, [list(range(1, 17))], 4, temperature=0, max_length=30)
  more, _ = ssmlab.generate(model, params, [[]], 4, temperature=0, state=state)
  whole, _ = ssmlab.generate(model, params, [list(range(1, 17))], 8, temperature=0)
  assert np.concatenate([first, more], axis=1).tolist() == whole.tolist()
  with pytest.raises(ValueError, match='0 tokens and 5 new ones are more than the 4'):
    ssmlab.generate(model, params, [[]], 5, temperature=0, state=state)


def test_modernbert_with_a_classifier():
  """Its dense map and norm stand under the names of the head's."""
  config, tensors = golden('modernbert')
  random = np.random.default_rng(0)
  fine_tuned = {key: value for key, value in tensors.items() if key != 'decoder.bias'}
  fine_tuned |= {'classifier.weight': random.normal(size=(3, 16)).astype(np.float32), 'classifier.bias': random.normal(size=3).astype(np.float32)}
  model, params, _ = build('modernbert', config | dict(classifier_pooling='mean'), fine_tuned)
  assert model.head is None and (model.classifier.labels, model.classifier.pooling, model.classifier.norm.bias) == (3, 'mean', False)
  out = pretrained.export(model, params, 'modernbert')
  assert set(out) == set(fine_tuned) and all(np.array_equal(out[key], fine_tuned[key]) for key in out)
