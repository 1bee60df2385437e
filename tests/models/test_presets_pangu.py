"""PanGu-pi's parameter counts, against the arithmetic of the paper's sizes; no weights were published."""

import pytest

from ssmlab.models.presets import llama, pangu


@pytest.mark.parametrize('size, depth, width, hidden', [('1B', 12, 2048, 5632), ('7B', 29, 4096, 11008)])
def test_counts(size, depth, width, hidden):
  layer = 4 * width ** 2 + 3 * width * hidden + 2 * width ** 2 // 32 + 2 * 2 * hidden + 2 * width
  assert pangu.pangu_pi(size).size() == depth * layer + 2 * 100883 * width + width


def test_as_large_as_the_llama_it_is_compared_with_in_fewer_layers():
  ours, theirs = pangu.pangu_pi('7B'), llama.llama2('7B')
  assert ours.depth == theirs.depth - 3 and abs(ours.size() / theirs.size() - 1) < 2e-3 and round(ours.size() / 1e9, 2) == 6.73
  assert round(pangu.pangu_pi('1B').size() / 1e9, 2) == 1.03


def test_an_unknown_size_names_the_known():
  with pytest.raises(ValueError, match="pangu_pi: size '3B' is not one of 1B, 7B"):
    pangu.pangu_pi('3B')
