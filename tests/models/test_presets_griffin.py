"""The Griffin and RecurrentGemma presets have the published numbers of parameters."""

import pytest

from ssmlab.interop import recurrentgemma as files
from ssmlab.models.presets.griffin import SIZES_GRIFFIN, griffin, recurrentgemma

# What differs from transformers' defaults in huggingface.co/google/recurrentgemma-2b and -9b, config.json.
RELEASED = {'2B': dict(num_key_value_heads=1, intermediate_size=15360),
            '9B': dict(num_key_value_heads=1, intermediate_size=24576, hidden_size=4096, num_attention_heads=16, num_hidden_layers=38)}


@pytest.mark.parametrize('size', SIZES_GRIFFIN)
def test_griffins_count_is_the_papers_name(size):
  """arXiv 2402.19427, table 2, to the digits of its names: with 32,000 ids and one table for both ends."""
  number, unit = float(size[:-1]), {'M': 1e6, 'B': 1e9}[size[-1]]
  digits = 1 if size in ('1.3B', '14B') else 0
  assert float(f'{griffin(size).size():.{digits}e}') == number * unit


@pytest.mark.parametrize('size', SIZES_GRIFFIN)
def test_griffins_blocks(size):
  """Section 3: two recurrent blocks, one of local attention over 1024 tokens; section 4.1: gates of inner^2 / 16; appendix F.4: heads of 128."""
  recurrent, again, local = (block.mixer for block in griffin(size).blocks[:3])
  gate = recurrent.params(griffin(size).width)['w_input_gate']
  assert recurrent == again and gate.size == recurrent.inner ** 2 // 16
  assert (local.window, local.head_dim, local.kv_heads) == (1024, 128, 1)


@pytest.mark.parametrize('size, total, rest, embedding', [('2B', 2.68, 2.03, 0.65), ('9B', 8.58, 7.53, 1.05)])
def test_recurrentgemmas_table(size, total, rest, embedding):
  """arXiv 2404.07839, table 1: all, non-embedding and embedding parameters in billions, within the last digit (0.655 is printed as 0.65)."""
  model = recurrentgemma(size)
  table = model.vocab * model.width
  for number, published in ((model.size(), total), (model.size() - table, rest), (table, embedding)):
    assert abs(number / 1e9 - published) < 0.01


def test_recurrentgemmas_checkpoints():
  """Elements of huggingface.co/google/recurrentgemma-2b and -9b; the 9B's files hold the tied head a second time."""
  assert recurrentgemma('2B').size() == 2_682_862_080
  model = recurrentgemma('9B')
  assert model.size() + model.vocab * model.width == 9_628_553_216


@pytest.mark.parametrize('size', RELEASED)
def test_recurrentgemma_is_what_its_config_loads_as(size):
  ours, loaded = recurrentgemma(size), files._model(RELEASED[size], {})
  same = lambda model: (model.blocks, model.vocab, model.width, model.norm, model.embedding, model.head)
  assert same(ours) == same(loaded)


@pytest.mark.parametrize('preset, known', [(griffin, '100M, 200M, 400M, 1.3B, 3B, 7B, 14B'), (recurrentgemma, '2B, 9B')])
def test_an_unknown_size_names_the_known(preset, known):
  with pytest.raises(ValueError, match=f"{preset.__name__}: size '1B' is not one of {known}"):
    preset('1B')
