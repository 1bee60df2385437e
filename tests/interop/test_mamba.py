"""Mamba and Mamba-2: round trips of files and states, the authors' own layout, options, and what is refused."""

import json
import math
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ssmlab
from ssmlab.core.config import UserError
from ssmlab.core.params import init
from ssmlab.interop import mapping, pretrained
from ssmlab.layers.embedding import Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.mamba1 import Mamba1
from ssmlab.mixers.mamba2 import Mamba2
from ssmlab.models import LM

DATA = pathlib.Path(__file__).parents[1] / 'golden' / 'data'
NAMES = ('mamba1', 'mamba2')
OPTIONS = [Mamba1(state=4, bias=True), Mamba1(state=4, rank=2, conv_bias=False, conv_width=2),
           Mamba2(head_dim=8, state=4, groups=2, bias=True, dt_lowest=0.01, dt_highest=0.2), Mamba2(head_dim=4, state=4, conv_bias=False, dt_lowest=0.01)]


def golden(name: str) -> tuple[dict, dict[str, np.ndarray]]:
  """(config, parameters) of a golden file."""
  tensors = load_file(DATA / f'{name}-hf.safetensors')
  return json.loads((DATA / f'{name}-hf.json').read_text())['config'], {k.removeprefix('param/'): v for k, v in tensors.items() if k.startswith('param/')}


def equal(one, other) -> bool:
  return jax.tree.structure(one) == jax.tree.structure(other) and all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def small(mixer, tied: bool = False) -> LM:
  return LM(vocab=11, width=16, pattern=(mixer,), depth=2, norm=RMSNorm(1e-5), head=Head(tied=tied))


@pytest.mark.parametrize('name', NAMES)
def test_round_trip(name, tmp_path):
  """File -> tree -> file, bit for bit, recognised by the keys where the config names no model."""
  config, tensors = golden(name)
  save_file(tensors, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text(json.dumps(config))
  model, params, info = ssmlab.load_pretrained(tmp_path)
  assert info['format'] == name and not info['ignored']
  pretrained.save_pretrained(tmp_path / 'ours', model, params, name)
  again, same, _ = ssmlab.load_pretrained(tmp_path / 'ours')
  assert equal(same, params) and again.blocks == model.blocks
  assert equal(load_file(tmp_path / 'ours' / 'model.safetensors'), tensors)


@pytest.mark.parametrize('mixer', OPTIONS, ids=repr)
@pytest.mark.parametrize('tied', [False, True])
def test_options_come_back(mixer, tied, tmp_path):
  model = small(mixer, tied)
  params = init(jax.random.key(0), model.params())
  pretrained.save_pretrained(tmp_path, model, params, 'mamba1' if isinstance(mixer, Mamba1) else 'mamba2')
  again, same, _ = ssmlab.load_pretrained(tmp_path)
  assert equal(same, params) and again.head.tied == tied
  assert getattr(again.blocks[0].mixer, 'dt_highest', None) == getattr(mixer, 'dt_highest', None)


@pytest.mark.parametrize('mixer', [Mamba1(state=4), Mamba2(head_dim=8, state=4, groups=2)], ids=repr)
def test_the_authors_own_files(mixer, tmp_path):
  """state-spaces/mamba: another key and another config, the vocabulary before padding."""
  model = small(mixer, tied=True)
  params = init(jax.random.key(0), model.params())
  pretrained.save_pretrained(tmp_path, model, params, 'mamba-ssm')
  config = json.loads((tmp_path / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps(config | dict(vocab_size=9, pad_vocab_size_multiple=11)))
  again, same, info = ssmlab.load_pretrained(tmp_path)
  assert info['format'] == 'mamba-ssm' and again.vocab == 11 and equal(same, params)
  (tmp_path / 'config.json').unlink()
  if mixer.__class__ is Mamba1:
    (tmp_path / 'config.json').write_text(json.dumps(dict(d_model=16, n_layer=2, ssm_cfg=dict(d_state=4))))
    assert equal(ssmlab.load_pretrained(tmp_path)[1], params)


@pytest.mark.parametrize('name', NAMES)
def test_state_round_trip(name):
  config, tensors = golden(name)
  model, params, _ = pretrained.build(name, config, tensors, name)
  _, state = model.apply(params, np.arange(10, dtype=np.int32).reshape(2, 5), model.init_state(2, 8))
  form = pretrained.form_of(name)
  again = mapping.import_state(form, model, mapping.export_state(form, model, state, 5), 5, 8)
  assert equal(again['blocks'], jax.tree.map(np.asarray, state['blocks']))


@pytest.mark.parametrize('limit', [[0.0, 'inf'], ['0.0', 'inf'], [0.0, {'__float__': 'Infinity'}], [0.0, math.inf], None])
def test_no_upper_limit_of_dt(limit):
  config, tensors = golden('mamba2')
  model, _, _ = pretrained.build('mamba2', config | dict(time_step_limit=limit), tensors, 'file')
  assert (model.blocks[0].mixer.dt_lowest, model.blocks[0].mixer.dt_highest) == (0.0, None)


@pytest.mark.parametrize('name, edits, message', [
    ('mamba1', dict(hidden_act='gelu'), "hidden_act='gelu' is not supported"),
    ('mamba1', dict(state_size=9), "x_proj.weight' has shape"),
    ('mamba2', dict(num_heads=5), 'num_heads=5 times head_dim=8 is not expand'),
    ('mamba2', dict(n_groups=4), 'head_dim=8 times groups=4'),
    ('mamba2', dict(rms_norm=False), 'rms_norm=False is not supported')])
def test_what_is_refused(name, edits, message):
  config, tensors = golden(name)
  with pytest.raises(UserError, match=message):
    pretrained.build(name, config | edits, tensors, 'file')
