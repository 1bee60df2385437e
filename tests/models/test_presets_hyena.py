"""The Hyena, H3, StripedHyena and HyenaDNA presets have the published numbers of parameters, by shape evaluation."""

import pytest

from ssmlab.models.presets.hyena import (
  SIZES,
  SIZES_DNA,
  SIZES_H3,
  h3,
  hyena,
  hyenadna,
  striped_hyena,
)

NUMBERS = {'M': 1e6, 'B': 1e9}


def test_the_153m():
  """Counted from safari's own model of that config: 153,700,416, of which 43,428,096 in the table and 1,216,512 features of positions."""
  model = hyena('153M')
  assert model.size() == 153_700_416 and model.vocab * model.width == 43_428_096
  assert model.params()['blocks']['0']['mixer']['filter']['z'].size == 1_216_512
  assert model.max_length == 2048 and hyena('153M', l_max=1024).max_length == 1024


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('order', [2, 3])
def test_hyena_by_its_parts(size, order):
  """arXiv 2302.10866, table A.4 and section 4 of safari's block: every linear map has a bias, the filter's last has none."""
  depth, width, hidden = SIZES[size]
  operator = (order + 1) * (width * width + width + 3 * width + width) + width * width + width
  made = 33 * 64 + 64 + 2 * (64 * 64 + 64) + 64 * width * (order - 1) + 64 + 2048 * 33 + width * (order - 1)       # the last: the skip
  block = operator + made + 2 * width * hidden + hidden + width + 4 * width
  model = hyena(size, order=order)
  assert model.size() == 50264 * width + depth * block + 2 * width
  if order == 2:                                             # the name, to its first two digits or to 2 %
    assert abs(model.size() / (float(size.removesuffix('-slim')[:-1]) * NUMBERS[size.removesuffix('-slim')[-1]]) - 1) < 0.02


@pytest.mark.parametrize('size', SIZES_H3)
def test_h3_by_its_name(size):
  """The released checkpoints' names, to 2 %; and by parts: four maps, two systems of 64, attention where the README puts it."""
  depth, width, _, at = SIZES_H3[size]
  layer = 4 * (width * width + width) + width * 64 * 2 + width + width * (32 * 2 + 32 * 2 * 2 + 1) + width
  attention = 4 * (width * width + width)
  other = 8 * width * width + 5 * width + 4 * width
  count = h3(size).size()
  assert count == 50264 * width + (depth - len(at)) * layer + len(at) * attention + depth * other + 2 * width
  assert abs(count / (float(size[:-1]) * NUMBERS[size[-1]]) - 1) < 0.025


def test_striped_hyena():
  """The files of huggingface.co/togethercomputer/StripedHyena-Hessian-7B hold 9.89 + 5.4 GB, two bytes a parameter."""
  model = striped_hyena('7B')
  assert f'{2 * model.size() / 1e9:.2f}' == '15.29' and model.size() == 7_646_023_680
  assert [type(block.mixer).__name__ for block in model.blocks[:3]] == ['StripedHyena', 'Attention', 'StripedHyena'] and model.max_length is None


def test_hyenadna():
  """By parts: config.json of hyenadna-large-1m-seqlen-hf (8 layers of 256, inner 1024, features of 5); features and decays are constants."""
  block = 4 * (256 * 256 + 256) + 3 * 256 * 4 + 5 * 64 + 64 + 2 * (64 * 64 + 64) + 64 + 64 * 256 + 256 + 2 * 256 * 1024 + 1024 + 256 + 4 * 256
  for size in ('medium-160k', 'medium-450k', 'large-1m'):
    assert hyenadna(size).size() == 16 * 256 + 8 * block + 2 * 256
  assert hyenadna('large-1m').max_length == 1_000_002


@pytest.mark.parametrize('preset, sizes', [(hyena, SIZES), (h3, SIZES_H3), (hyenadna, SIZES_DNA), (striped_hyena, ('7B',))])
def test_an_unknown_size_names_the_known(preset, sizes):
  with pytest.raises(ValueError, match=f"{preset.__name__}: size '13T' is not one of {', '.join(sizes)}"):
    preset('13T')
