"""Hyena's and H3's files: round trips, old names, shared tensors, what the config decides, hybrids with attention."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ssmlab
from ssmlab.core.config import UserError
from ssmlab.core.params import init
from ssmlab.interop import hyena, pretrained
from ssmlab.layers.channel import MLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.filters import ImplicitFilter
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.h3 import H3
from ssmlab.mixers.hyena import Hyena
from ssmlab.models.lm import LM

DATA = pathlib.Path(__file__).parents[1] / 'golden' / 'data' / 'hyena-lm-2layer'
TOKENS = np.random.default_rng(0).integers(0, 29, (2, 17), dtype=np.int32)
AT = 'backbone.layers.{}.mixer.'


def golden():
  config = json.loads(DATA.with_suffix('.json').read_text())['config']
  tensors = load_file(DATA.with_suffix('.safetensors'))
  return config, {key.removeprefix('param/'): value for key, value in tensors.items() if key.startswith('param/')}


def logits(config, tensors):
  model, params, _ = pretrained.build('hyena-lm', config, tensors, 'the file')
  return np.asarray(jax.jit(model.apply)(params, TOKENS)[0])


def write(folder, config, tensors):
  folder.mkdir()
  save_file(tensors, folder / 'model.safetensors')
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


def test_round_trip(tmp_path):
  config, tensors = golden()
  model, params, info = ssmlab.load_pretrained(write(tmp_path / 'theirs', config, tensors))
  assert info['format'] == 'hyena-lm' and model.vocab == 32 and model.max_length == 24 and model.head.tied
  out = pretrained.export(model, params, 'hyena-lm')
  assert set(out) == set(tensors)
  for key, value in tensors.items():
    if key.endswith('pos_emb.t'):                            # a constant, which torch rounds otherwise
      np.testing.assert_allclose(out[key], value, atol=1e-7)
    else:
      np.testing.assert_array_equal(out[key], value, err_msg=key, strict=True)
  pretrained.save_pretrained(tmp_path / 'ours', model, params, 'hyena-lm')
  again, same, _ = ssmlab.load_pretrained(tmp_path / 'ours')
  assert again == model and all(map(np.array_equal, jax.tree.leaves(same), jax.tree.leaves(params)))


def old_norms(key):
  """Norms as they were named before they moved: by what they follow."""
  for now, then in (('layers.0.norm1', 'ln_0'), ('layers.0.norm2', 'layers.0.norm1'), ('layers.1.norm1', 'layers.0.norm2'),
                    ('layers.1.norm2', 'layers.1.norm1'), ('ln_f', 'layers.1.norm2')):
    if now in key:
      return key.replace(now, then)
  return key


@pytest.mark.parametrize('rename', [
    lambda key: 'model.' + key, lambda key: 'hyena.' + key if key.startswith('backbone') else key,
    lambda key: key.replace('backbone.embeddings.word_embeddings.', 'embedding.'), lambda key: key.replace('backbone.', 's4seq.encoder.'),
    lambda key: key.replace('.mixer.', '.mixer.layer.').replace('.mlp.', '.mlp.layer.'), lambda key: key.replace('mixer.out_proj.', 'mixer.output_linear.'),
    old_norms, lambda key: None if '.3.freq' in key or '.5.freq' in key or 'lm_head' in key or key.endswith('pos_emb.t') else key],
    ids=['lightning', 'transformers', 'embedding', 's4seq', 'checkpointed', 'output', 'norms', 'copies left out'])
def test_older_names(rename):
  config, tensors = golden()
  other = {rename(key): value for key, value in tensors.items() if rename(key)}
  assert set(other) != set(tensors)
  assert [name for name, form in pretrained.FORMATS.items() if form.recognise(None, other)] == ['hyena-lm']
  np.testing.assert_array_equal(logits(config, other), logits(config, tensors))


def test_what_tensors_do_not_say():
  """Sizes come from the tensors; the window, its shift and fixed positions from the config."""
  config, tensors = golden()
  whole, layer = logits(config, tensors), config['layer']
  np.testing.assert_array_equal(logits({}, tensors), whole)
  for changed in (dict(modulate=False), dict(shift=0.5), dict(normalized=True)):
    assert np.abs(logits(config | dict(layer=layer | changed), tensors) - whole).max() > 1e-2 * np.abs(whole).max()
  model, *_ = pretrained.build('hyena-lm', config | dict(layer=layer | dict(lr_pos_emb=0.0)), tensors, '')
  learned = pretrained.build('hyena-lm', config, tensors, '')[0]
  assert learned.size() - model.size() == 2 * tensors[AT.format(0) + 'filter_fn.pos_emb.z'].size
  np.testing.assert_array_equal(logits({'model_type': 'hyenadna'}, tensors), whole)


def test_what_is_refused():
  config, tensors = golden()
  key = AT.format(1) + 'filter_fn.implicit_filter.3.freq'
  with pytest.raises(UserError, match='3.freq.*differs from.*1.freq.*one vector'):
    logits(config, tensors | {key: tensors[key] + 1})
  key = AT.format(1) + 'filter_fn.pos_emb.t'
  with pytest.raises(UserError, match='pos_emb.t.*differs from the constants'):
    logits(config, tensors | {key: tensors[key] * 2})
  with pytest.raises(UserError, match="num_heads=2 is not supported; allowed: 1"):
    logits(config | dict(layer=dict(num_heads=2)), tensors)
  with pytest.raises(UserError, match='max_position_embeddings=64 is not supported'):
    logits(config | dict(max_position_embeddings=64), tensors)
  with pytest.raises(UserError, match=r"tensor 'backbone.layers.1.mixer.in_proj.weight' has shape \(48, 15\), expected \(48, 16\)"):
    logits(config, tensors | {AT.format(1) + 'in_proj.weight': tensors[AT.format(1) + 'in_proj.weight'][:, :-1]})


@pytest.mark.parametrize('kind, mixer', [('h3-lm', H3(state=8)), ('h3-lm', H3(state=8, head_dim=4, hold=True)),
                                         ('hyena-lm', Hyena(ImplicitFilter(32, emb_dim=5, width=8, inner_layers=1), order=3, conv_width=4))])
def test_hybrids_with_attention(kind, mixer, tmp_path):
  """Of either kind, with attention in the second of three layers; attention's parts also as they were named before they were stacked."""
  attention = Attention(heads=2, head_dim=8, bias=True, output_bias=True, rotary_fraction=0.5, start=0.02)
  model = LM(vocab=29, width=16, depth=3, pattern=(mixer, attention), channel=MLP(24, 'gelu_tanh', start=0.02), norm=LayerNorm(),
             embedding=Embedding(size=0.02), head=Head(tied=True))
  params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), init(jax.random.key(0), model.params()))
  pretrained.save_pretrained(tmp_path / 'a', model, params, kind)
  again, same, info = ssmlab.load_pretrained(tmp_path / 'a')
  assert info['format'] == kind and all(map(np.array_equal, jax.tree.leaves(same), jax.tree.leaves(params)))
  expected = jax.jit(model.apply)(params, TOKENS)[0]
  np.testing.assert_allclose(jax.jit(again.apply)(same, TOKENS)[0], expected, atol=1e-5)
  tensors, stacked = load_file(tmp_path / 'a' / 'model.safetensors'), AT.format(1) + 'Wqkv.'
  for end in ('weight', 'bias'):
    tensors |= {f'{AT.format(1)}{name}_proj.{end}': part for name, part in zip('qkv', np.split(tensors.pop(stacked + end), 3))}
  config = json.loads((tmp_path / 'a' / 'config.json').read_text())
  _, parts, _ = pretrained.build(kind, config, tensors, '')
  assert all(map(np.array_equal, jax.tree.leaves(parts), jax.tree.leaves(params)))


def test_safari_cannot_say_everything():
  config, tensors = golden()
  model, params, _ = pretrained.build('hyena-lm', config, tensors, '')
  multi = LM(vocab=32, width=16, depth=1, pattern=(Hyena(ImplicitFilter(24), heads=2),), channel=MLP(8, 'gelu_tanh'))
  with pytest.raises(UserError, match='heads=1'):
    hyena.HYENA.config(multi)
  with pytest.raises(UserError, match="none of safari's"):
    hyena.HYENA.config(LM(vocab=8, width=16, depth=1, pattern=(Hyena(),)))
  assert jnp.isfinite(model.apply(params, TOKENS)[0]).all()


@pytest.mark.parametrize('mixer', [Hyena(), Hyena(ImplicitFilter(l_max=8, emb_dim=3, width=4), heads=2)], ids=['distilled', 'heads'])
def test_a_hyena_that_their_files_cannot_hold_is_refused(mixer, tmp_path):
  model = LM(vocab=9, width=4, pattern=(mixer,), depth=1, channel=MLP(4, 'gelu_tanh'), norm=LayerNorm(), head=Head(tied=True))
  with pytest.raises(UserError, match='has an ImplicitFilter and heads=1'):
    pretrained.save_pretrained(tmp_path, model, init(jax.random.key(0), model.params()), 'hyena-lm')
