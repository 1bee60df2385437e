"""Parameter counts of the xLSTM presets, by shape evaluation, against the published numbers."""

import pytest

from ssmlab.interop.xlstm import FORMAT
from ssmlab.models.presets.xlstm import xlstm


def test_7b():
  """arXiv 2503.13427: 6,865,424,896 parameters.  The weights' files (huggingface.co/NX-AI/xLSTM-7b) are 27.46 GB of float32, four bytes each."""
  assert xlstm('7B').size() == 6_865_424_896
  assert f'{4 * xlstm("7B").size() / 1e9:.2f}' == '27.46'


def test_it_is_the_model_of_the_published_config():
  """transformers' defaults are those of the 7B model."""
  ours, theirs = xlstm('7B'), FORMAT.model({}, {'lm_head.weight': None})
  assert all(getattr(ours, name) == getattr(theirs, name) for name in ('vocab', 'width', 'depth', 'blocks', 'norm'))
  assert ours.head.softcap == theirs.head.softcap and not theirs.head.tied


def test_an_unknown_size_names_the_known():
  with pytest.raises(ValueError, match="size '8B' is not one of 7B"):
    xlstm('8B')
