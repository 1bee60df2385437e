"""RWKV-4, 5 and 6: round trips of files and states, and what is told apart or refused."""

import json
import os
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ssmlab
from ssmlab.core.config import UserError
from ssmlab.core.params import init
from ssmlab.interop import mapping, pretrained
from ssmlab.layers.channel import RWKVChannelMix
from ssmlab.layers.embedding import Embedding
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.rwkv4 import RWKV4
from ssmlab.models import LM

TESTS = pathlib.Path(__file__).parents[1]
FOLDERS = TESTS / 'golden' / 'data', pathlib.Path(os.environ.get('SSMLAB_GOLDEN', TESTS.parents[1] / 'shared' / 'golden'))
NAMES = ('rwkv4-hf', 'rwkv4-pth', 'rwkv5', 'rwkv6')


def golden(name: str) -> tuple[dict, dict[str, np.ndarray]]:
  """(config, parameters) of a golden file."""
  path = next(folder / name for folder in FOLDERS if (folder / f'{name}.json').is_file())
  tensors = load_file(path.with_suffix('.safetensors'))
  return json.loads(path.with_suffix('.json').read_text())['config'], {k.removeprefix('param/'): v for k, v in tensors.items() if k.startswith('param/')}


def equal(one, other) -> bool:
  return jax.tree.structure(one) == jax.tree.structure(other) and all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_round_trip(name, dtype, tmp_path):
  """File -> tree -> the authors' tensors, bit for bit, recognised by the keys alone; vectors may lack their axes of size 1."""
  config, tensors = golden(name)
  tensors = {key: value.astype(dtype) for key, value in tensors.items()}
  (tmp_path / 'theirs').mkdir()
  bare = {key: value.reshape(-1) if value.shape[:2] == (1, 1) else value for key, value in tensors.items()}
  save_file(bare, tmp_path / 'theirs' / 'model.safetensors')
  if name == 'rwkv4-hf':
    (tmp_path / 'theirs' / 'config.json').write_text(json.dumps(config))
  model, params, info = ssmlab.load_pretrained(tmp_path / 'theirs')
  assert info['format'] == name and info['dtype'] == dtype and not info['ignored']
  pretrained.save_pretrained(tmp_path / 'ours', model, params, name, dtype=dtype)
  out = load_file(tmp_path / 'ours' / 'model.safetensors')
  assert set(out) == set(tensors)
  for key in out:
    np.testing.assert_array_equal(out[key], tensors[key], strict=True, err_msg=key)
  again, same, _ = ssmlab.load_pretrained(tmp_path / 'ours')
  assert again == model and equal(same, params)


@pytest.mark.parametrize('name', NAMES)
def test_state_round_trip(name):
  """Ours -> the authors' -> ours; a fresh state has their exponent of nothing read."""
  form = pretrained.form_of(name)
  model, _, _ = pretrained.build(name, *golden(name), 'test')
  draw = np.random.default_rng(0)
  state = jax.tree.map(lambda leaf: draw.uniform(0.5, 1, leaf.shape).astype(leaf.dtype), model.init_state(3, 8))
  theirs = mapping.export_state(form, model, state, 7)
  back = mapping.import_state(form, model, theirs, 7, 8)
  assert equal(back['blocks'], state['blocks'])
  fresh = mapping.export_state(form, model, model.init_state(3, 8), 0)
  if name.startswith('rwkv4'):
    exponents = [value for key, value in fresh.items() if key in ('4', '0.wkv_max', '1.wkv_max')]
    assert exponents and all((value == np.float32(-1e30)).all() for value in exponents)
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(mapping.import_state(form, model, fresh, 0, 8)))


def test_the_two_forms_of_rwkv4_are_one_model():
  hf, params, _ = pretrained.build('rwkv4-hf', *golden('rwkv4-hf'), 'test')
  pth, same, _ = pretrained.build('rwkv4-pth', *golden('rwkv4-pth'), 'test')
  assert hf == pth and equal(params, same)


def test_other_widths_inside_and_a_tied_head(tmp_path):
  """attention_hidden_size and intermediate_size of their own; an LM of three blocks through both files and their states."""
  norm = LayerNorm()
  model = LM(vocab=11, width=8, depth=3, pattern=(RWKV4(inner=12),), channel=RWKVChannelMix(20), norm=norm, embedding=Embedding(norm=norm))
  params = init(jax.random.key(0), model.params())
  for name in ('rwkv4-hf', 'rwkv4-pth'):
    pretrained.save_pretrained(tmp_path / name, model, params, name)
    again, same, info = ssmlab.load_pretrained(tmp_path / name)
    assert info['format'] == name and again.blocks[2].mixer == model.blocks[2].mixer and equal(same, params)
  config, tensors = golden('rwkv4-hf')
  tensors['head.weight'] = tensors['rwkv.embeddings.weight']
  tied, _, ignored = pretrained.build('rwkv4-hf', config | dict(tie_word_embeddings=True), tensors, 'test')
  assert tied.head.tied and ignored == ['head.weight']


def test_versions_that_are_not_supported(tmp_path):
  """5.0 and 5.1 have one decay per head; a tuned initial state has no place."""
  _, tensors = golden('rwkv5')
  older = tensors | {key: value[:, 0] for key, value in tensors.items() if key.endswith(('time_decay', 'time_faaaa'))}
  with pytest.raises(UserError, match=r"'blocks.0.att.time_decay' has shape \(4,\), expected 2 axes"):
    pretrained.build('rwkv5', {}, older, 'test')
  _, tensors = golden('rwkv6')
  with pytest.raises(UserError, match="unexpected tensor 'blocks.0.att.time_state'"):
    pretrained.build('rwkv6', {}, tensors | {'blocks.0.att.time_state': np.zeros((4, 16, 16), ml_dtypes.bfloat16)}, 'test')
