"""Documents whole in a row: what a batch holds, packing, parts of long documents, words, resuming."""

import dataclasses
import json

import numpy as np
import pytest

from ssmlab.data import Bytes, Documents, Text
from ssmlab.data.documents import best_fit
from ssmlab.data.tokenizers import word_starts

TEXTS = ['abc', 'de fgh', 'x', 'the cat sat on the mat', 'lmnop', 'q r', 'stu', 'v']


@pytest.fixture
def source(tmp_path, monkeypatch):
  monkeypatch.setenv('SSMLAB_CACHE', str(tmp_path / 'cache'))
  for name in ('train', 'valid'):
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(json.dumps(dict(text=t)) for t in TEXTS))
  return Text(str(tmp_path / 'train.jsonl'), valid=str(tmp_path / 'valid.jsonl'), test_share=0.0)


def documents(batch, separator=-1):
  """The texts of a batch and what stands around them."""
  found = []
  for tokens, targets, ids in zip(batch['tokens'], batch['targets'], batch['segment_ids']):
    for number in range(1, ids.max() + 1):
      at = np.flatnonzero(ids == number)
      assert (np.diff(at) == 1).all() and tokens[at[0]] == 0 and targets[at[0]] == -1
      text = at[1:] if separator < 0 else at[1:-1]
      assert separator < 0 or tokens[at[-1]] == separator and targets[at[-1]] == -1
      assert (tokens[text] == targets[text]).all()
      found.append(bytes(tokens[text].astype(np.uint8)).decode())
    assert (targets[ids == 0] == -1).all()
  return found


@pytest.mark.parametrize('pack', (True, False))
@pytest.mark.parametrize('separator', (-1, 300))
def test_every_document_once(source, pack, separator):
  data = Documents(source, Bytes(), length=12, batch_size=4, most=12, separator=separator, pack=pack)
  room = 11 - (separator >= 0)
  parts = [text[at:at + room] for text in TEXTS for at in range(0, len(text), room)]
  batches = list(data.eval_batches('valid'))
  assert sorted(text for batch in batches for text in documents(batch, separator)) == sorted(parts)
  assert all(batch['tokens'].shape == (4, 12) for batch in batches)
  steps, seen = data.train_batches(), []
  for _ in range(-(-data._plan(data._corpus('train'), pack).rows // 4)):
    seen += documents(next(steps), separator)
  assert set(seen) <= set(parts) and len(seen) >= len(parts) - 4
  if pack:
    assert data.wasted('train', True) < data.wasted('train', False)


def test_wasted_is_what_batches_hold(source):
  for pack in (True, False):
    data = Documents(source, Bytes(), length=16, batch_size=1, most=9, separator=300, pack=pack)
    ids = np.concatenate([batch['segment_ids'] for batch in data.eval_batches('valid')])
    assert data.wasted('valid', pack) == pytest.approx(1 - (ids != 0).mean())


def test_only_the_first_part(source):
  data = Documents(source, Bytes(), length=8, batch_size=2, most=8, rest=False, pack=False)
  assert sorted(text for batch in data.eval_batches('valid') for text in documents(batch)) == sorted(text[:7] for text in TEXTS)


def test_a_step_is_the_same_after_a_restart_and_on_two_hosts(source):
  data = Documents(source, Bytes(), length=12, batch_size=2, most=12)
  whole = data.train_batches()
  batches = [next(whole) for _ in range(5)]
  again = next(data.train_batches(start_step=3))
  shares = [next(data.train_batches(3, rows)) for rows in (slice(1), slice(1, None))]
  for name, value in batches[3].items():
    assert np.array_equal(value, again[name]) and np.array_equal(value, np.concatenate([share[name] for share in shares]))


def test_words(source):
  """A word begins after a space, with the space; other signs begin one too."""
  starts = word_starts(Bytes())
  assert not starts[[ord('a'), ord('Z'), ord('7'), 0xc3]].any() and starts[[ord(' '), ord('.'), ord('\n'), 0]].all()
  data = Documents(source, Bytes(), length=32, batch_size=8, most=32, pack=False)
  batch = next(data.eval_batches('valid'))
  row = next(i for i, tokens in enumerate(batch['tokens']) if bytes(tokens[1:8].astype(np.uint8)) == b'the cat')
  words = batch['words'][row]
  assert [len(set(words[1 + a:1 + b])) for a, b in ((0, 3), (3, 7), (7, 11))] == [1, 1, 1] and len(set(words[1:23])) == 6
  assert words[0] != words[1]


def test_best_fit():
  """No row is overfull, and random documents leave little unused: far less than one document in a row."""
  random = np.random.default_rng(0)
  for length in (10, 128):
    sizes = np.minimum(random.geometric(4 / length, 2000), length)
    row = best_fit(sizes, length)
    held = np.bincount(row, sizes)
    assert held.max() <= length and held.min() > 0 and len(held) == row.max() + 1
    assert len(held) <= 1.01 * sizes.sum() / length + 1
  assert best_fit(np.array([3, 3, 3]), 3).tolist() == [0, 1, 2] and len(set(best_fit(np.array([1, 2, 1, 2]), 3))) == 2


def test_refusals(source):
  with pytest.raises(ValueError, match='data.most 13 must be above 1 and at most data.length 12'):
    Documents(source, Bytes(), length=12, most=13)
  with pytest.raises(ValueError, match='data.separator is 300'):
    Documents(source, Bytes(), length=12, most=12, separator=300).check(257)
  dataclasses.replace(Documents(source, Bytes(), length=12, most=12, separator=300)).check(301)
