"""The GLA, HGRN2 and linear attention presets have the published numbers of parameters."""

import pytest

from ssmlab.models.presets.linear import SIZES, gla, hgrn2, linear_attention
from ssmlab.models.presets.llama import transformer


def frame(width, hidden, mixer):
  """Parameters of fla's models by their keys: two tables, and per layer the mixer, two norms, gate, up and down; a norm on top."""
  return 2 * 32000 * width + 24 * (mixer + 2 * width + 3 * width * hidden) + width


@pytest.mark.parametrize('size, width, hidden', [('340M', 1024, 2816), ('1.3B', 2048, 5632)])
def test_gla_by_its_keys(size, width, hidden):
  """config.json of fla-hub/gla-*: 4 heads, keys of half the width: q, k; v, g, o; gk_proj of rank 16 with a bias; the gated norm."""
  mixer = 2 * width * width // 2 + 3 * width * width + 16 * width + 16 * width // 2 + width // 2 + width // 4
  assert gla(size).size() == frame(width, hidden, mixer)


def test_checkpoints():
  """Elements of huggingface.co/fla-hub/gla-1.3B-100B (339 tensors) and hgrn2-1.3B-100B (244 tensors, the bounds [24, 2048] among them)."""
  assert gla('1.3B').size() == 1_365_514_240
  assert hgrn2('1.3B').size() == 1_364_396_032


@pytest.mark.parametrize('size', SIZES)
def test_the_baselines_are_of_one_size(size):
  """arXiv 2312.06635 compares models of one name; linear attention has exactly the Transformer++'s parameters."""
  assert linear_attention(size).size() == transformer(size).size()
  assert abs(gla(size).size() / transformer(size).size() - 1) < 0.002


@pytest.mark.parametrize('preset, size', [(gla, '340M'), (gla, '1.3B'), (hgrn2, '1.3B'), (transformer, '340M'), (transformer, '1.3B')])
def test_the_papers_names_count_one_table(preset, size):
  """'340M' and '1.3B', to two digits, are the numbers without one of the two tables."""
  model = preset(size)
  assert f'{model.size() - model.vocab * model.width:.1e}' == {'340M': '3.4e+08', '1.3B': '1.3e+09'}[size]


def test_an_unknown_size_names_the_known():
  for preset in (gla, linear_attention):
    with pytest.raises(ValueError, match=f"{preset.__name__}: size '7B' is not one of 340M, 1.3B"):
      preset('7B')
  with pytest.raises(ValueError, match="hgrn2: size '340M' is not one of 1.3B"):
    hgrn2('340M')
