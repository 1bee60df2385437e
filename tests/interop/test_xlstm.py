"""xLSTM files of transformers: round trips of parameters and states, sizes that round, and what is refused."""

import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ssmlab
from ssmlab.core.config import UserError
from ssmlab.core.params import init
from ssmlab.interop import mapping, pretrained, xlstm
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Head
from ssmlab.mixers.mlstm import MLSTM
from ssmlab.models import LM

DATA = pathlib.Path(__file__).parents[1] / 'golden' / 'data'


def golden():
  """(config, parameters) of the golden file."""
  tensors = load_file(DATA / 'xlstm-hf.safetensors')
  return json.loads((DATA / 'xlstm-hf.json').read_text())['config'], {k.removeprefix('param/'): v for k, v in tensors.items() if k.startswith('param/')}


def equal(one, other) -> bool:
  return jax.tree.structure(one) == jax.tree.structure(other) and all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def test_round_trip(tmp_path):
  """File -> tree -> file, bit for bit, recognised by the keys alone."""
  config, tensors = golden()
  save_file(tensors, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text(json.dumps(config))
  model, params, info = ssmlab.load_pretrained(tmp_path)
  assert info['format'] == 'xlstm' and not info['ignored']
  pretrained.save_pretrained(tmp_path / 'ours', model, params, 'xlstm')
  again, same, _ = ssmlab.load_pretrained(tmp_path / 'ours')
  assert equal(same, params) and again.blocks == model.blocks
  assert equal(load_file(tmp_path / 'ours' / 'model.safetensors'), tensors)


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('mixer, width', [(MLSTM(3, 7, 5, soft_cap=4.0, eps=1e-3), 49), (MLSTM(1, 29, input_bias=0.0), 10), (MLSTM(2, 4), 16)], ids=repr)
def test_any_sizes_come_back(mixer, width, tied, tmp_path):
  """Factors of the width are floats that int() must bring back."""
  model = LM(vocab=11, width=width, pattern=(mixer,), depth=2, channel=GatedMLP(23), head=Head(tied=tied, softcap=7.0))
  params = init(jax.random.key(0), model.params())
  pretrained.save_pretrained(tmp_path, model, params, 'xlstm')
  again, same, _ = ssmlab.load_pretrained(tmp_path)
  assert equal(same, params) and again.head.tied == tied and again.head.softcap == 7.0
  assert again.blocks[0].mixer.soft_cap == mixer.soft_cap and again.blocks[0].mixer.eps == mixer.eps


def test_the_published_sizes():
  """transformers' rounding and defaults: an empty config is xLSTM 7B, and so is the published one, with the field names of before."""
  published = dict(model_type='xlstm', embedding_dim=4096, num_blocks=32, num_heads=8, qk_dim_factor=0.5, v_dim_factor=1.0, ffn_proj_factor=2.667,
                   ffn_round_up_to_multiple_of=64, gate_soft_cap=15.0, output_logit_soft_cap=30.0, norm_eps=1e-6, use_bias=False, vocab_size=50304)
  model, again = (xlstm.FORMAT.model(config, {xlstm.HEAD: np.zeros(1)}) for config in ({}, published))
  assert model == again and model.size() == 6_865_424_896
  assert model.blocks[0].channel.hidden == 10944 and model.blocks[0].mixer == MLSTM(8, 256, 512)


def test_state_round_trip():
  config, tensors = golden()
  model, params, _ = pretrained.build('xlstm', config, tensors, 'golden')
  tokens = np.arange(14).reshape(2, 7)
  _, state = model.apply(params, tokens, model.init_state(2, 16))
  theirs = mapping.export_state(xlstm.FORMAT, model, state, 7)
  assert {key: value.shape for key, value in theirs.items() if key.startswith('rnn_state.1')} == {
      'rnn_state.1.0': (2, 2, 8, 16), 'rnn_state.1.1': (2, 2, 8), 'rnn_state.1.2': (2, 2, 1)}
  back = mapping.import_state(xlstm.FORMAT, model, theirs, 7, 16)
  assert equal(back['blocks'], state['blocks'])


@pytest.mark.parametrize('change, message', [
    (dict(use_bias=True), 'use_bias=True is not supported'), (dict(weight_mode='fused'), "weight_mode='fused' is not supported"),
    (dict(num_heads=3), 'which num_heads=3 does not divide'), (dict(ffn_proj_factor=3.0), "'backbone.blocks.0.ffn.proj_up_gate.weight' has shape")])
def test_refused(change, message):
  config, tensors = golden()
  with pytest.raises(UserError, match=message):
    pretrained.build('xlstm', config | change, tensors, 'golden')


def test_another_model_has_no_config():
  model = LM(vocab=11, width=8, pattern=(MLSTM(2, 4),), depth=1)
  with pytest.raises(UserError, match='not MLSTM and GatedMLP'):
    pretrained.save_pretrained('unused', model, jax.tree.map(lambda a: np.zeros(a.shape), model.shapes()), 'xlstm')
