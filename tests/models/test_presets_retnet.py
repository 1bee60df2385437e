"""The RetNet presets have the published numbers of parameters."""

import math

import pytest

from ssmlab.models.presets.retnet import SIZES, retnet


@pytest.mark.parametrize('size', SIZES)
def test_the_count_is_the_papers_name(size):
  """arXiv 2307.08621, table 2, to its two digits: with 50257 ids and one table for both ends."""
  assert f'{retnet(size).size() / 1e9:.1f}B' == size


@pytest.mark.parametrize('size', SIZES)
def test_a_layer_has_what_the_paper_gives_it(size):
  """Section 3.1: 8 width^2 in retention and 4 in the feed-forward; torchscale's gated one shares them out otherwise, 12 to 2 % in all."""
  model = retnet(size)
  layers = model.size() - model.vocab * model.width
  assert math.isclose(layers, 12 * model.width ** 2 * model.depth, rel_tol=0.02)


def test_torchscales_layer_by_its_keys():
  """retnet_xl: q, k; v, g, out; fc1, gate, fc2; two norms; above all of them one norm and the table."""
  layer = 2 * 2048 * 2048 + 3 * 2048 * 3456 + 3 * 2048 * 3456 + 2 * 2048
  assert retnet('1.3B', vocab=1000).size() == 24 * layer + 2048 + 1000 * 2048


def test_an_unknown_size_names_the_known():
  with pytest.raises(ValueError, match="retnet: size '13B' is not one of 1.3B, 2.7B, 6.7B"):
    retnet('13B')
