"""Tables of labelled sentences: GLUE's layouts, rows of tokens, truncation, what is refused."""

import json
import lzma

import numpy as np
import pytest

from ssmlab.data import Bytes, Sentences, Table, glue

PAIRS = [('ab', 'cde', 'entailment'), ('f', 'g', 'not_entailment'), ('hij kl', 'm', 'entailment'), ('n "o', 'p', 'not_entailment')]


@pytest.fixture
def rte(tmp_path):
  """With a header and an index, as released."""
  lines = ['index\tsentence1\tsentence2\tlabel', *(f'{i}\t{a}\t{b}\t{label}' for i, (a, b, label) in enumerate(PAIRS))]
  for name in ('train', 'dev'):
    (tmp_path / f'{name}.tsv').write_text('\n'.join(lines) + '\n')
  return glue('rte', str(tmp_path / 'train.tsv'), str(tmp_path / 'dev.tsv'))


def test_pairs(rte):
  data = Sentences(rte, Bytes(), length=12, batch_size=3, separator=300)
  batches = list(data.eval_batches('valid'))
  assert [batch['labels'].tolist() for batch in batches] == [[0, 1, 0], [1, 0, 0]]
  first = batches[0]
  assert first['tokens'][0, :8].tolist() == [0, 97, 98, 300, 99, 100, 101, 300] and first['types'][0].tolist() == [0] * 4 + [1] * 4 + [0] * 4
  assert first['segment_ids'][0].tolist() == [1] * 8 + [0] * 4 and not batches[1]['segment_ids'][1:].any()


def test_the_longer_sentence_is_cut(rte):
  """Rows of 8: [CLS] and two separators leave five of seven bytes, and the longer sentence loses two."""
  data = Sentences(rte, Bytes(), length=8, batch_size=3, separator=300)
  row = next(data.eval_batches('valid'))['tokens'][2]
  assert row.tolist() == [0, *b'hij ', 300, ord('m'), 300]


def test_training_rows(rte):
  data = Sentences(rte, Bytes(), length=12, batch_size=2)
  steps = data.train_batches()
  seen = [next(steps) for _ in range(4)]
  epoch = np.concatenate([seen[0]['labels'], seen[1]['labels']])
  assert sorted(epoch.tolist()) == [0, 0, 1, 1]
  again, shares = next(data.train_batches(3)), [next(data.train_batches(3, rows)) for rows in (slice(1), slice(1, None))]
  for name, value in seen[3].items():
    assert np.array_equal(value, again[name]) and np.array_equal(value, np.concatenate([share[name] for share in shares]))
  assert data.fingerprint()['train']['examples'] == 4


def test_no_header_and_compressed(tmp_path):
  """CoLA: source, label, mark, sentence."""
  path = tmp_path / 'cola.tsv.xz'
  path.write_bytes(lzma.compress('gj04\t1\t\tThe sailors rode.\ngj04\t0\t*\tThem rode.\n'.encode()))
  assert [json.loads(text) for _, text in glue('cola', str(path)).read(str(path))] == [[['The sailors rode.'], 1.0], [['Them rode.'], 0.0]]


def test_jsonl_and_numbers(tmp_path):
  path = tmp_path / 'stsb.jsonl'
  path.write_text('\n'.join(json.dumps(dict(sentence1='a', sentence2='b', score=score)) for score in (4.5, 0)))
  assert [json.loads(text)[1] for _, text in glue('stsb', str(path)).read(str(path))] == [4.5, 0.0]


def test_refusals(rte, tmp_path):
  with pytest.raises(ValueError, match="task 'wnli' is not one of cola, sst2"):
    glue('wnli', 'x')
  with pytest.raises(ValueError, match="line 2: no column 'premise'; it has 'index', 'sentence1'"):
    list(Table(rte.path, ('premise',)).read(rte.path))
  with pytest.raises(ValueError, match="line 2: label 'entailment' is not one of yes, no"):
    list(Table(rte.path, ('sentence1',), classes=('yes', 'no')).read(rte.path))
  with pytest.raises(ValueError, match="label 'entailment' is not a number; name the classes"):
    list(Table(rte.path, ('sentence1',)).read(rte.path))
  with pytest.raises(ValueError, match='must name one column or two'):
    Table(rte.path, ())
  with pytest.raises(ValueError, match='pack=True must be False'):
    Sentences(rte, pack=True)
