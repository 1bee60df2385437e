"""Parameter counts of the Mamba presets, by shape evaluation, against the published numbers."""

import pytest

from ssmlab.models.presets.mamba import (
  SIZES_1,
  SIZES_2,
  SIZES_3,
  mamba1,
  mamba2,
  mamba3,
)

NUMBERS = {'M': 1e6, 'B': 1e9}


@pytest.mark.parametrize('preset, size', [(preset, size) for preset, sizes in ((mamba1, SIZES_1), (mamba2, SIZES_2)) for size in sizes])
def test_the_count_is_the_checkpoints_name(preset, size):
  """The released checkpoints are named by their size in two digits (state-spaces/mamba's README)."""
  assert float(f'{preset(size).size():.1e}') == float(size[:-1]) * NUMBERS[size[-1]]


def test_codestral():
  """huggingface.co/mistralai/Mamba-Codestral-7B-v0.1: 7,285,403,648 parameters."""
  assert mamba2('codestral-7B').size() == 7_285_403_648


@pytest.mark.parametrize('size, depth, width, hidden', [
    ('180M', 12, 768, 1500), ('440M', 24, 1024, 2048), ('880M', 24, 1536, 3072), ('1.5B', 24, 2048, 4096)])
def test_mamba3_by_its_parts(size, depth, width, hidden):
  """arXiv 2603.15569, table of MLP widths in appendix C, and appendix D: expansion 2, state 128, heads of 64.  The names are round numbers."""
  inner, heads, state = 2 * width, 2 * width // 64, 128
  mixer = width * (2 * inner + 2 * state + 3 * heads + state // 4) + inner * width        # z, x; B, C; dt, A, lambda; half the pairs' angles
  mixer += 2 * heads * state + 2 * state + 2 * heads                                      # biases and norms of B and C; dt's bias, D
  count = mamba3(size).size()
  assert count == 128256 * width + depth * (mixer + 3 * width * hidden + 2 * width) + width
  assert abs(count / (float(size[:-1]) * NUMBERS[size[-1]]) - 1) < 0.04


@pytest.mark.parametrize('preset, sizes', [(mamba1, SIZES_1), (mamba2, SIZES_2), (mamba3, SIZES_3)])
def test_an_unknown_size_names_the_known(preset, sizes):
  with pytest.raises(ValueError, match=f"size '131M' is not one of {', '.join(sizes)}"):
    preset('131M')
