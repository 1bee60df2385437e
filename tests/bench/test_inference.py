"""The table of inference: one row per model, ratios to the first."""

import pytest

from ssmlab.bench import inference
from ssmlab.core.config import UserError
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.mingru import MinGRU
from ssmlab.models import LM


def test_rows():
  small = LM(vocab=32, width=8, pattern=(MinGRU(expand=1.0),), depth=1, channel=GatedMLP(16))
  rows = inference.run(dict(one=small, two=small), length=8, new=2, batch=2, rounds=1)
  assert [row['model'] for row in rows] == ['one', 'two'] and rows[0]['ratio'] == 1.0
  assert all(row['parameters'] == small.size() and row['flops'] == small.flops(8) and row['prefill'] > 0 < row['decoding'] for row in rows)


def test_an_encoder_is_refused():
  with pytest.raises(UserError, match='mosaicbert_small: Encoder does not generate'):
    inference.main(['experiments/mosaicbert_small.py'])
