"""Chunks hold one document each, and every token of the text once."""

import numpy as np
import pytest

from ssmlab.data import Bytes, Chunks, Text, corpus


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'train').mkdir()
  texts = ['abcdefg', '', 'hi', 'jklmnopqr']
  for index, text in enumerate(texts):
    (tmp_path / 'train' / f'{index}.txt').write_text(text)
  return tmp_path, texts


def data_of(folder, **fields) -> Chunks:
  return Chunks(Text(str(folder / 'train'), valid=str(folder / 'train')), Bytes(), **(dict(length=8, batch_size=2, chunk=4) | fields))


def expected(data, chunk: int, fill: int) -> list[int]:
  """From the documents of the corpus, one by one."""
  found, ids = corpus.load(data.source, data.tokenizer, 'valid'), []
  for start, stop in zip(found.starts, [*found.starts[1:], found.positions]):
    document = [*found.tokens[start + 1:stop], data.end]
    ids += document + [fill] * (-len(document) % chunk)
  return ids


@pytest.mark.parametrize('chunk, padding', [(4, -1), (4, 7), (2, -1), (1, -1)])
def test_the_stream_of_chunks(folder, chunk, padding):
  data = data_of(folder[0], chunk=chunk, padding=padding)
  batches = list(data.eval_batches('valid'))
  targets = np.concatenate([batch['targets'].reshape(-1) for batch in batches])
  tokens = np.concatenate([batch['tokens'].reshape(-1) for batch in batches])
  ids = np.concatenate([batch['segment_ids'].reshape(-1) for batch in batches])
  wanted = expected(data, chunk, data.end if padding < 0 else padding)
  assert targets[targets >= 0].tolist() == wanted
  assert (tokens[targets >= 0] == targets[targets >= 0]).all()
  assert ((targets >= 0) == (ids != 0)).all()
  assert len(wanted) % chunk == 0 and sum(bytes([t]).isalpha() for t in wanted if t) == sum(map(len, folder[1]))


def test_a_training_step_is_a_function_of_its_number(folder):
  data = data_of(folder[0])
  first = data.train_batches(0)
  skipped = [next(first) for _ in range(4)][3]
  again = next(data.train_batches(3))
  assert all((skipped[name] == again[name]).all() for name in skipped)


def test_hosts_share_a_batch(folder):
  data = data_of(folder[0])
  whole = next(data.train_batches(0))
  halves = [next(data.train_batches(0, rows)) for rows in (slice(1), slice(1, None))]
  assert (np.concatenate([half['tokens'] for half in halves]) == whole['tokens']).all()


def test_lengths_that_do_not_fit_are_refused(folder):
  with pytest.raises(ValueError, match='data.length 10 must be a multiple of data.chunk 4'):
    data_of(folder[0], length=10)
