"""Parameter counts of the Mamba presets, by shape evaluation, against the published numbers."""

import pytest

from ssmlab.models.presets.mamba import SIZES_1, SIZES_2, mamba1, mamba2

NUMBERS = {'M': 1e6, 'B': 1e9}


@pytest.mark.parametrize('preset, size', [(preset, size) for preset, sizes in ((mamba1, SIZES_1), (mamba2, SIZES_2)) for size in sizes])
def test_the_count_is_the_checkpoints_name(preset, size):
  """The released checkpoints are named by their size in two digits (state-spaces/mamba's README)."""
  assert float(f'{preset(size).size():.1e}') == float(size[:-1]) * NUMBERS[size[-1]]


def test_codestral():
  """huggingface.co/mistralai/Mamba-Codestral-7B-v0.1: 7,285,403,648 parameters."""
  assert mamba2('codestral-7B').size() == 7_285_403_648


@pytest.mark.parametrize('preset, sizes', [(mamba1, SIZES_1), (mamba2, SIZES_2)])
def test_an_unknown_size_names_the_known(preset, sizes):
  with pytest.raises(ValueError, match=f"size '131M' is not one of {', '.join(sizes)}"):
    preset('131M')
