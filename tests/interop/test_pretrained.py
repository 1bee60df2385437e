"""Loading published checkpoints: round trips, the ways files lie on a disk, and what is refused."""

import json
import pathlib
import struct
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ssmlab
from ssmlab.core.config import UserError
from ssmlab.interop import mapping, pretrained
from ssmlab.interop.torch_files import read_torch

DATA = pathlib.Path(__file__).parents[1] / 'golden' / 'data'
SYSTEMS = {'gated-deltanet': 'gated-deltanet-hf', 'llama': 'llama-hf', 'recurrentgemma': 'recurrentgemma-hf', 'retnet': 'retnet', 'rwkv7': 'rwkv7'}
MODEL_TYPES = {'llama': 'llama', 'recurrentgemma': 'recurrent_gemma'}


def golden(name: str) -> tuple[dict, dict[str, np.ndarray]]:
  """(config, parameters) of a golden file, the config as a config.json would be."""
  meta = json.loads((DATA / f'{SYSTEMS[name]}.json').read_text())
  config = meta['config'] | ({'model_type': MODEL_TYPES[name]} if name in MODEL_TYPES else {})
  tensors = load_file(DATA / f'{SYSTEMS[name]}.safetensors')
  return config, {key.removeprefix('param/'): value for key, value in tensors.items() if key.startswith('param/')}


def write(folder: pathlib.Path, config: dict | None, **files: dict[str, np.ndarray]) -> pathlib.Path:
  folder.mkdir(exist_ok=True)
  for name, tensors in files.items():
    save_file(tensors, folder / f'{name}.safetensors')
  if config is not None:
    (folder / 'config.json').write_text(json.dumps(config))
  return folder


def equal(one, other) -> bool:
  return jax.tree.structure(one) == jax.tree.structure(other) and all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


@pytest.mark.parametrize('name', SYSTEMS)
def test_round_trip(name, tmp_path):
  """Folder -> tree -> the authors' tensors, bit for bit; and the folder that we write loads to the same."""
  config, tensors = golden(name)
  model, params, info = ssmlab.load_pretrained(write(tmp_path / 'theirs', config, model=tensors))
  assert info['format'] == name and info['dtype'] == 'float32' and info['config'] == config
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, model.shapes())
  out = pretrained.export(model, params, name)
  constants = pretrained.FORMATS[name].constants(model)
  assert set(out) == set(tensors) and set(info['ignored']) == set(constants)
  for key in set(out) - set(constants):
    np.testing.assert_array_equal(out[key], tensors[key], strict=True, err_msg=key)
  pretrained.save_pretrained(tmp_path / 'ours', model, params, name)
  again, same, _ = ssmlab.load_pretrained(tmp_path / 'ours')
  assert again == model and equal(same, params)


@pytest.mark.parametrize('name', SYSTEMS)
def test_bfloat16_file_comes_back_as_it_was(name, tmp_path):
  config, tensors = golden(name)
  small = {key: value.astype(ml_dtypes.bfloat16) for key, value in tensors.items()}
  model, params, info = ssmlab.load_pretrained(write(tmp_path / 'theirs', config, model=small))
  assert info['dtype'] == 'bfloat16' and {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  pretrained.save_pretrained(tmp_path / 'ours', model, params, name, dtype='bfloat16')
  out = load_file(tmp_path / 'ours' / 'model.safetensors')
  assert all(np.array_equal(out[key], small[key]) for key in set(small) - set(pretrained.FORMATS[name].constants(model)))


@pytest.mark.parametrize('depth', [1, 2, 4, 5, 6])
def test_any_depth_of_a_hybrid(depth):
  """Blocks that repeat and blocks that are left on top come from the right layers and go back."""
  config, tensors = golden('recurrentgemma')
  kinds = [('recurrent', 'recurrent', 'attention')[layer % 3] for layer in range(depth)]
  wide = {key: value for key, value in tensors.items() if '.layers.' not in key}
  for layer in range(depth):
    start = f'model.layers.{layer % 3}.'
    wide |= {f'model.layers.{layer}.{key.removeprefix(start)}': value + layer for key, value in tensors.items() if key.startswith(start)}
  model, params, _ = pretrained.build('recurrentgemma', config | dict(num_hidden_layers=depth, layer_types=kinds), wide, 'test')
  assert ['attention' if type(block.mixer).__name__ == 'Attention' else 'recurrent' for block in model.blocks] == kinds
  out = pretrained.export(model, params, 'recurrentgemma')
  assert set(out) == set(wide) and all(np.array_equal(out[key], wide[key]) for key in wide)


def test_state_round_trip():
  """Ours -> the authors' -> ours, also through a pattern with blocks on top; a cache that they do not hold is named."""
  for name in ('retnet', 'rwkv7'):
    config, tensors = golden(name)
    model, _, _ = pretrained.build(name, config, tensors, 'test')
    draw = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(leaf.dtype), model.init_state(2, 8))
    theirs = mapping.export_state(pretrained.FORMATS[name], model, state, 7)
    back = mapping.export_state(pretrained.FORMATS[name], model, mapping.import_state(pretrained.FORMATS[name], model, theirs, 7, 8), 7)
    for key in theirs:
      np.testing.assert_allclose(back[key], theirs[key], rtol=1e-6, err_msg=key)
  config, tensors = golden('recurrentgemma')
  model, _, _ = pretrained.build('recurrentgemma', config, tensors, 'test')
  form = pretrained.FORMATS['recurrentgemma']
  theirs = mapping.export_state(form, model, model.init_state(2, 8), 0)
  with pytest.raises(UserError, match='block 2: mixer/cache'):
    mapping.import_state(form, model, theirs, 0, 8)


# How files lie.

def test_shards_with_an_index(tmp_path):
  config, tensors = golden('llama')
  keys = sorted(tensors)
  parts = {'model-00001-of-00002': {k: tensors[k] for k in keys[::2]}, 'model-00002-of-00002': {k: tensors[k] for k in keys[1::2]}}
  write(tmp_path, config, **parts, unrelated={'x': np.zeros(2, np.float32)})
  index = {key: f'{name}.safetensors' for name, part in parts.items() for key in part}
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(dict(metadata={}, weight_map=index)))
  _, params, info = ssmlab.load_pretrained(tmp_path)
  assert equal(params, pretrained.build('llama', config, tensors, 'test')[1]) and len(info['files']) == 2
  (tmp_path / 'model-00002-of-00002.safetensors').unlink()
  with pytest.raises(UserError, match='model-00002-of-00002.safetensors'):
    ssmlab.load_pretrained(tmp_path)


def test_tied_head(tmp_path):
  """The config says tied and the file holds the head anyway; the config is silent and the head is absent."""
  config, tensors = golden('llama')
  table = tensors['model.embed_tokens.weight']
  same = tensors | {'lm_head.weight': table.copy(), 'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(8, np.float32)}
  model, _, info = ssmlab.load_pretrained(write(tmp_path / 'said', config | dict(tie_word_embeddings=True), model=same))
  assert model.head.tied and info['ignored'] == ['lm_head.weight', 'model.layers.0.self_attn.rotary_emb.inv_freq']
  silent = {key: value for key, value in config.items() if key != 'tie_word_embeddings'}
  less = {key: value for key, value in tensors.items() if key != 'lm_head.weight'}
  assert ssmlab.load_pretrained(write(tmp_path / 'silent', silent, model=less))[0].head.tied


def test_rwkv7_without_the_unused_tensors(tmp_path):
  config, tensors = golden('rwkv7')
  less = {key: value.reshape(-1) if value.shape[:2] == (1, 1) else value for key, value in tensors.items()
          if key not in ('blocks.0.att.v0', 'blocks.0.att.v1', 'blocks.0.att.v2')}
  save_file(less, tmp_path / 'one.safetensors')
  model, params, _ = ssmlab.load_pretrained(tmp_path / 'one.safetensors')
  whole, full, _ = pretrained.build('rwkv7', {}, tensors, 'test')
  assert model == whole
  mixer = params['blocks']['0']['mixer']
  assert not np.any(mixer['v1'][0]) and np.array_equal(mixer['v1'][1], full['blocks']['0']['mixer']['v1'][1])
  assert equal(params['blocks']['0']['channel'], full['blocks']['0']['channel'])


# PyTorch's files, written by hand.

TYPES = {'float32': 'FloatStorage', 'bfloat16': 'BFloat16Storage', 'float16': 'HalfStorage', 'int64': 'LongStorage'}


def text(value: str) -> bytes:
  return b'X' + struct.pack('<I', len(value)) + value.encode()


def number(value: int) -> bytes:
  return b'J' + struct.pack('<i', value)


def numbers(values) -> bytes:
  return b'(' + b''.join(map(number, values)) + b't'


def tensor(kind: str, key: str, count: int, offset: int, shape, strides) -> bytes:
  """Opcodes of torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, False, OrderedDict())."""
  storage = b'(' + text('storage') + f'ctorch\n{TYPES[kind]}\n'.encode() + text(key) + text('cpu') + number(count) + b'tQ'
  rest = number(offset) + numbers(shape) + numbers(strides) + b'\x89' + b'ccollections\nOrderedDict\n)R'
  return b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + rest + b'tR'


def write_torch(path: pathlib.Path, pickle: bytes, storages: dict[str, bytes], compression=zipfile.ZIP_STORED) -> pathlib.Path:
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('archive/data.pkl', pickle)
    archive.writestr('archive/byteorder', 'little')
    for key, raw in storages.items():
      archive.writestr(f'archive/data/{key}', raw)
    archive.writestr('archive/version', '3\n')
  return path


def state_dict(entries: dict[str, bytes]) -> bytes:
  """Opcodes of an OrderedDict with torch's attribute _metadata."""
  items = b''.join(text(key) + code for key, code in entries.items())
  return b'\x80\x02ccollections\nOrderedDict\n)R(' + items + b'u}(' + text('_metadata') + b'ccollections\nOrderedDict\n)Rub.'


def contiguous(array: np.ndarray) -> tuple[int, ...]:
  return tuple(stride // array.itemsize for stride in np.ascontiguousarray(array).strides)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_pth(dtype, tmp_path):
  tensors = {key: value.astype(dtype) for key, value in golden('rwkv7')[1].items()}
  entries = {key: tensor(dtype, str(i), v.size, 0, v.shape, contiguous(v)) for i, (key, v) in enumerate(tensors.items())}
  path = write_torch(tmp_path / 'model.pth', state_dict(entries), {str(i): v.tobytes() for i, v in enumerate(tensors.values())})
  model, params, info = ssmlab.load_pretrained(path)
  assert info['format'] == 'rwkv7' and info['dtype'] == dtype and info['files'] == [str(path)]
  assert equal(params, pretrained.build('rwkv7', {}, tensors, 'test')[1]) and model.depth == 2


def test_pth_strides_and_shared_storages(tmp_path):
  raw = np.arange(24, dtype=np.float32)
  entries = dict(whole=tensor('float32', '0', 24, 0, (4, 6), (6, 1)), turned=tensor('float32', '0', 24, 0, (6, 4), (1, 6)),
                 part=tensor('float32', '0', 24, 7, (2, 3), (6, 2)), same=tensor('float32', '0', 24, 3, (5, 2), (0, 1)),
                 none=tensor('float32', '0', 24, 0, (0, 3), (3, 1)), scalar=tensor('int64', '1', 1, 0, (), ()))
  for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    path = write_torch(tmp_path / 'x.pth', state_dict(entries), {'0': raw.tobytes(), '1': np.int64(5).tobytes()}, compression)
    read = read_torch(path)
    whole = raw.reshape(4, 6)
    expected = dict(whole=whole, turned=whole.T, part=raw[7:].reshape(-1)[[[0, 2, 4], [6, 8, 10]]], same=np.tile(raw[3:5], (5, 1)),
                    none=np.zeros((0, 3), np.float32), scalar=np.int64(5))
    for key, value in expected.items():
      np.testing.assert_array_equal(read[key], value, err_msg=key)
  outside = state_dict(dict(x=tensor('float32', '0', 24, 20, (5,), (1,))))
  with pytest.raises(UserError, match='reaches number 24 of a storage of 24'):
    read_torch(write_torch(tmp_path / 'outside.pth', outside, {'0': raw.tobytes()}))


@pytest.mark.parametrize('named', ['posix\nsystem', 'builtins\neval', 'subprocess\nPopen', 'torch\nload', 'numpy.core.multiarray\n_reconstruct'])
def test_malicious_pickle_is_refused_and_not_run(named, tmp_path):
  mark = tmp_path / 'was-run'
  call = f'c{named}\n('.encode() + text(f'touch {mark}') + b'tR'
  path = write_torch(tmp_path / 'evil.pth', state_dict(dict(x=call)), {})
  with pytest.raises(UserError, match=named.replace('\n', '.')):
    ssmlab.load_pretrained(path)
  assert not mark.exists()


@pytest.mark.parametrize('pickle', [
    b'\x80\x02}(' + text('x') + b'ctorch\nFloatStorage\n)Ru.',                               # calls what is a mere name
    b'\x80\x02}(' + text('x') + b'ctorch._utils\n_rebuild_tensor_v2\n)Ru.',
    b'\x80\x02}(' + text('x') + text('no tensor') + b'u.', b'\x80\x02]', b'\x80\x02K\x01.', b'junk'])
def test_damaged_pickle(pickle, tmp_path):
  with pytest.raises(UserError, match='bad.pth'):
    ssmlab.load_pretrained(write_torch(tmp_path / 'bad.pth', pickle, {}))


def test_legacy_torch_file(tmp_path):
  (tmp_path / 'old.pth').write_bytes(b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.')
  with pytest.raises(UserError, match='since 1.6'):
    ssmlab.load_pretrained(tmp_path / 'old.pth')


# What is refused.

def changed(**edits):
  """The golden Llama's tensors with some replaced, or removed where None."""
  config, tensors = golden('llama')
  tensors |= {key.replace('__', '.'): value for key, value in edits.items()}
  return config, {key: value for key, value in tensors.items() if value is not None}


@pytest.mark.parametrize('edits, message', [
    (dict(model__norm__weight=None), "tensor 'model.norm.weight' is missing"),
    (dict(score__weight=np.zeros(3, np.float32)), "unexpected tensor 'score.weight'"),
    (dict(model__norm__weight=np.zeros(65, np.float32)), r"tensor 'model.norm.weight' has shape \(65,\), expected \(64,\)"),
    (dict(lm_head__weight=np.zeros((64, 101), np.float32)), r"tensor 'lm_head.weight' has shape \(64, 101\), expected \(101, 64\)"),
    (dict(model__norm__weight=np.zeros(64, np.int8)), "tensor 'model.norm.weight' is of type int8")])
def test_tensors_that_do_not_fit(edits, message, tmp_path):
  config, tensors = changed(**edits)
  with pytest.raises(UserError, match=message) as caught:
    ssmlab.load_pretrained(write(tmp_path, config, model=tensors))
  assert '\n' not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize('edits, message', [
    (dict(hidden_act='tanh'), "hidden_act='tanh' is not supported; allowed: 'silu'"),
    (dict(rope_scaling=dict(rope_type='llama3', factor=8.0)), "rotary scaling 'llama3' is not supported"),
    (dict(rope_parameters=dict(rope_type='yarn', rope_theta=1e4)), "rotary scaling 'yarn' is not supported"),
    (dict(num_key_value_heads=3), 'heads=4 is not a multiple of kv_heads=3'), (dict(hidden_size=None), "'hidden_size'"),
    (dict(model_type='gpt_neox', architectures=None), "model_type 'gpt_neox'.*formats: llama, .*rwkv7")])
def test_configs_that_are_not_supported(edits, message, tmp_path):
  config, tensors = golden('llama')
  with pytest.raises(UserError, match=message) as caught:
    ssmlab.load_pretrained(write(tmp_path, config | edits, model=tensors))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('edits, message', [
    (dict(deepnorm=True), 'deepnorm=True is not supported'), (dict(activation_fn='mish'), "activation_fn='mish' is not supported")])
def test_retnet_options(edits, message):
  config, tensors = golden('retnet')
  with pytest.raises(UserError, match=message):
    pretrained.build('retnet', config | edits, tensors, 'test')


def test_retnet_constants_are_checked():
  config, tensors = golden('retnet')
  with pytest.raises(UserError, match="'retnet_rel_pos.decay' differs"):
    pretrained.build('retnet', config, tensors | {'retnet_rel_pos.decay': tensors['retnet_rel_pos.decay'] * 1.01}, 'test')


def test_files_that_are_not_there(tmp_path):
  for path, message in ((tmp_path / 'nowhere', 'does not exist'), (tmp_path, 'holds no files of tensors')):
    with pytest.raises(UserError, match=message):
      ssmlab.load_pretrained(path)
  (tmp_path / 'model.gguf').write_bytes(b'')
  with pytest.raises(UserError, match='allowed: .safetensors, .pth, .bin'):
    ssmlab.load_pretrained(tmp_path / 'model.gguf')
  config, tensors = golden('llama')
  save_file(tensors, tmp_path / 'model.safetensors')
  with pytest.raises(UserError, match="unknown format 'lama'; formats: llama"):
    ssmlab.load_pretrained(tmp_path, format='lama')
  with pytest.raises(UserError, match='no config.json'):
    ssmlab.load_pretrained(tmp_path)
  with pytest.raises(UserError, match='config.json beside the tensors is needed'):
    ssmlab.load_pretrained(tmp_path, format='llama')
  whole = (tmp_path / 'model.safetensors').read_bytes()
  for size in (0, 5, 100, len(whole) - 4):
    (tmp_path / 'model.safetensors').write_bytes(whole[:size])
    with pytest.raises(UserError, match='cannot be read'):
      ssmlab.load_pretrained(tmp_path, format='llama')


def test_a_model_that_the_format_cannot_express(tmp_path):
  config, tensors = golden('llama')
  model, params, _ = pretrained.build('llama', config, tensors, 'test')
  scaled = ssmlab.LM(**{**vars(model), 'embedding': type(model.embedding)(scale=2.0)})
  with pytest.raises(UserError, match='format llama cannot express this model'):
    pretrained.save_pretrained(tmp_path / 'x', scaled, params, 'llama')
  with pytest.raises(UserError, match='format rwkv7 has no place for'):
    pretrained.save_pretrained(tmp_path / 'x', model, params, 'rwkv7')


def test_a_folder_without_a_model_type(tmp_path):
  """What is recognised by its keys alone needs no model_type."""
  for name in ('recurrentgemma', 'retnet', 'rwkv7'):
    config, tensors = golden(name)
    config.pop('model_type', None)
    folder = write(tmp_path / name, config, model=tensors)
    assert ssmlab.load_pretrained(folder)[2]['format'] == ssmlab.load_pretrained(folder, format=name)[2]['format'] == name
