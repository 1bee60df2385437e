"""The DeltaNet and Gated DeltaNet presets have the published numbers of parameters."""

import pytest

from ssmlab.models.presets.delta import deltanet, gated_deltanet, gated_deltanet_paper


def frame(depth, width, hidden, mixer):
  """Parameters of fla's models by their keys: two tables, and per layer the mixer, two norms, gate, up and down; a norm on top."""
  return 2 * 32000 * width + depth * (mixer + 2 * width + 3 * width * hidden) + width


@pytest.mark.parametrize('size, depth, width, hidden, heads', [('340M', 24, 1024, 2816, 8), ('1.3B', 24, 2048, 5632, 16)])
def test_deltanet_by_its_keys(size, depth, width, hidden, heads):
  """config.json of fla-hub/delta_net-1.3B-100B and of fla-org/flame's delta_net_340M: q, k, v, o; b; three convolutions of 4; o_norm."""
  assert deltanet(size).size() == frame(depth, width, hidden, 4 * width * width + width * heads + 3 * 4 * width + width // heads)


def test_deltanets_checkpoint():
  """Elements of the 339 tensors of huggingface.co/fla-hub/delta_net-1.3B-100B."""
  assert deltanet('1.3B').size() == 1_365_677_056


@pytest.mark.parametrize('size, width, hidden, heads', [('340M', 1024, 2816, 4), ('1.3B', 2048, 5632, 8)])
def test_gated_deltanet_by_its_keys(size, width, hidden, heads):
  """config.json of m-a-p/340M-20B- and 1.3B-100B-GatedDeltaNet-pure: q, k, v, g, o; a, b; A_log, dt_bias; convolutions; o_norm."""
  mixer = 5 * width * width + 2 * width * heads + 2 * heads + 3 * 4 * width + width // heads
  assert gated_deltanet(size).size() == frame(24, width, hidden, mixer)


def test_gated_deltanets_checkpoint():
  """huggingface.co/m-a-p/1.3B-100B-GatedDeltaNet-pure holds 1,466,344,000 elements, of which D, 8 in each of 24 layers, is read by nothing."""
  assert gated_deltanet('1.3B').size() == 1_466_344_000 - 24 * 8


def test_gated_deltanet_of_the_paper_by_its_code():
  """NVlabs/GatedDeltaNet, lit_gpt/config.py and gated_delta_net.py: gk and b map to 9 heads; theirs have b's bias and D besides."""
  width, keys, values, heads = 2400, 1800, 3600, 9
  mixer = 2 * width * keys + 3 * width * values + 2 * width * heads + 4 * (2 * keys + values) + 2 * heads + values // heads
  theirs = frame(16, width, 5888, mixer + 2 * heads)
  assert gated_deltanet_paper('1.3B').size() == theirs - 16 * 2 * heads


@pytest.mark.parametrize('preset, size', [(deltanet, '340M'), (deltanet, '1.3B'), (gated_deltanet_paper, '1.3B')])
def test_the_papers_names_count_one_table(preset, size):
  """arXiv 2406.06484 and 2412.06464: '340M' and '1.3B', to two digits, are the numbers without one of the two tables."""
  model = preset(size)
  assert f'{model.size() - model.vocab * model.width:.1e}' == {'340M': '3.4e+08', '1.3B': '1.3e+09'}[size]


def test_an_unknown_size_names_the_known():
  for preset in (deltanet, gated_deltanet):
    with pytest.raises(ValueError, match=f"{preset.__name__}: size '2.7B' is not one of 340M, 1.3B"):
      preset('2.7B')
  with pytest.raises(ValueError, match="gated_deltanet_paper: size '0.4B' is not one of 1.3B"):
    gated_deltanet_paper('0.4B')
