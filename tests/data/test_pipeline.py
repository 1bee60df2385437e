"""Batches: what is in them, that they depend on (seed, step) alone, and the cache under them."""

import dataclasses
import itertools
import json
import logging
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ssmlab.data import (
  Bytes,
  Data,
  EmptySplit,
  HFTokenizer,
  RWKVWorld,
  StandardLibrary,
  Text,
  Tokens,
  corpus,
)

DOCUMENTS = [f'{i}: ' + 'naïve 世界 🌍 '[:i % 12] * (i % 7) for i in range(60)]
SHARED = pathlib.Path(__file__).parents[2].parent / 'shared' / 'data' / 'lm'


@pytest.fixture
def source(tmp_path) -> Text:
  for name, part in (('train', DOCUMENTS[:40]), ('valid', DOCUMENTS[40:52]), ('test', DOCUMENTS[52:])):
    (tmp_path / f'{name}.jsonl').write_text(''.join(json.dumps(dict(text=text)) + '\n' for text in part))
  return Text(*(str(tmp_path / f'{name}.jsonl') for name in ('train', 'valid', 'test')))


def assert_equal(left: list, right: list):
  assert len(left) == len(right)
  for one, other in zip(left, right):
    assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def take(batches, count: int) -> list:
  return list(itertools.islice(batches, count))


def documents(batches, end: int) -> list[list[int]]:
  """The documents that rows spell, from their targets: those of a row in order, rows joined in order."""
  found = [[]]
  for batch in batches:
    for token in batch['targets'][batch['targets'] >= 0]:
      found[-1].append(int(token))
      if token == end:
        found.append([])
  return [ids[:-1] for ids in found[:-1]]


@pytest.mark.parametrize('pack', (True, False))
@pytest.mark.parametrize('length, batch_size', ((16, 4), (7, 3), (1, 1), (5000, 2)))
@pytest.mark.parametrize('kind', ('bytes', 'hf', 'rwkv'))
def test_evaluation_is_every_token_once(source, tmp_path, byte_level, rwkv, kind, length, batch_size, pack):
  tokenizer = Bytes()
  if kind == 'hf':
    tokenizer = HFTokenizer(byte_level(tmp_path / 'tokenizer.json'))
  if kind == 'rwkv':
    tokenizer = RWKVWorld(rwkv(tmp_path / 'vocab.txt'))
  data = Data(source, tokenizer, length=length, batch_size=batch_size, pack=pack)
  batches = list(data.eval_batches('valid'))
  for batch in batches:
    assert all(column.shape == (batch_size, length) and column.dtype == np.int32 for column in batch.values())
  assert [tokenizer.decode(ids) for ids in documents(batches, data.end)] == DOCUMENTS[40:52]
  size = sum(len(text.encode()) for text in DOCUMENTS[40:52])
  predicted = sum(int((batch['targets'] >= 0).sum()) for batch in batches)
  assert sum(data.count_bytes(batch['targets']) for batch in batches) == size
  assert data.bytes_per_token('valid') == size / predicted
  assert data.fingerprint()['valid'] | {'sha256': ''} == dict(sha256='', tokens=predicted, documents=12, bytes=size)


@pytest.mark.parametrize('pack', (True, False))
def test_rows(source, pack):
  """Where segments begin, what a token's target is, and that padding is at the end."""
  data = Data(source, length=16, batch_size=4, pack=pack)
  for batch in [*data.eval_batches('train'), *take(data.train_batches(), 20)]:
    tokens, targets, segments = batch['tokens'], batch['targets'], batch['segment_ids']
    real = segments > 0
    assert ((targets >= 0) == real).all() and (real[:, :-1] >= real[:, 1:]).all()
    assert (segments[:, 0] == real[:, 0]).all()
    steps = np.diff(segments, axis=1)[real[:, 1:]]
    assert set(steps) <= {0, 1} if pack else not steps.any()
    within = real[:, 1:] & (np.diff(segments, axis=1) == 0)
    assert (targets[:, :-1][within] == tokens[:, 1:][within]).all()
    begins = real[:, 1:] & (np.diff(segments, axis=1) == 1)
    assert (tokens[:, 1:][begins] == 0).all() and (targets[:, :-1][begins] == 0).all()
    assert (tokens[~real] == data.end).all()


def test_training_tiles_the_stream(source):
  data = Data(source, length=16, batch_size=1, seed=3)
  stream = b''.join(b'\0' + text.encode() for text in DOCUMENTS[:40]) + b'\0'
  rows = len(stream[:-1]) // 16
  for epoch in range(2):
    batches = take(data.train_batches(epoch * rows), rows)
    found = {(batch['tokens'].astype(np.uint8).tobytes(), batch['targets'].astype(np.uint8).tobytes()) for batch in batches}
    assert found == {(stream[at:at + 16], stream[at + 1:at + 17]) for at in range(0, rows * 16, 16)}
  first, second = ([batch['tokens'].tobytes() for batch in take(data.train_batches(start), rows)] for start in (0, rows))
  assert first != second and sorted(first) == sorted(second)


def test_a_batch_is_a_function_of_seed_and_step(source):
  data = Data(source, length=8, batch_size=4, seed=1)
  batches = take(data.train_batches(), 60)
  assert_equal(batches, take(data.train_batches(), 60))
  for step in (1, 7, 40):
    assert_equal(batches[step:], take(data.train_batches(step), 60 - step))
  other = take(dataclasses.replace(data, seed=2).train_batches(), 3)
  assert any((one['tokens'] != two['tokens']).any() for one, two in zip(batches, other))
  next(data.train_batches(10**9))


@pytest.mark.parametrize('hosts', (1, 3, 4))
def test_hosts_share_the_global_batch(source, hosts):
  """Whatever rows a host reads, they are those of the whole batch."""
  data = Data(source, length=8, batch_size=8)

  def joined(batches):
    order = np.argsort(np.concatenate(shares))
    return [{key: np.concatenate([part[key] for part in parts])[order] for key in parts[0]} for parts in zip(*batches)]

  shares = [np.arange(host, 8, hosts) for host in range(hosts)]
  assert_equal(joined([take(data.train_batches(3, rows), 30) for rows in shares]), take(data.train_batches(3), 30))
  assert_equal(joined([list(data.eval_batches('valid', None, rows)) for rows in shares]), list(data.eval_batches('valid')))


def test_max_tokens(source):
  data = Data(source, length=8, batch_size=2)
  whole = list(data.eval_batches('valid'))
  for tokens, count in ((1, 1), (16, 1), (17, 2), (10**9, len(whole))):
    assert_equal(list(data.eval_batches('valid', tokens)), whole[:count])


def test_one_short_row_is_padded_in_training(tmp_path):
  (tmp_path / 'a.txt').write_text('short')
  data = Data(Text(str(tmp_path / 'a.txt'), piece=0, valid_share=0, test_share=0), length=16, batch_size=2)
  batch = next(data.train_batches())
  assert batch['targets'].tolist() == [[*b'short', 0] + [-1] * 10] * 2
  assert batch['segment_ids'].tolist() == [[1] * 6 + [0] * 10] * 2
  assert data.fingerprint()['valid'] is None
  with pytest.raises(EmptySplit, match="split 'valid' holds no document"):
    data.eval_batches('valid')


def test_tokens_source(tmp_path):
  ids = np.array([5, 6, 9, 7, 9, 9, 8], np.uint16)
  ids.tofile(tmp_path / 'a.bin')
  path = str(tmp_path / 'a.bin')
  data = Data(Tokens(path, valid=path, test=path, end=9), length=20, batch_size=1)
  batch = next(data.eval_batches('valid'))
  assert batch['tokens'][0, :7].tolist() == [9, 5, 6, 9, 7, 9, 8] and batch['targets'][0, :8].tolist() == [5, 6, 9, 7, 9, 8, 9, -1]
  assert batch['segment_ids'][0, :8].tolist() == [1, 1, 1, 2, 2, 3, 3, 0]
  assert data.count_bytes(batch['targets']) == 4 and data.text('valid', 3) == b'\x05\x06\x07'
  data.check(10)
  with pytest.raises(ValueError, match='model.vocab is 9, but Tokens.* needs at least 10'):
    data.check(9)


def test_tokens_of_an_unknown_tokenizer(tmp_path):
  np.save(tmp_path / 'a.npy', np.array([1, 70000, 2]))
  path = str(tmp_path / 'a.npy')
  data = Data(Tokens(path, valid=path, test=path), length=4, batch_size=1)
  batch = next(data.train_batches())
  assert batch['tokens'].tolist() == [[0, 1, 70000, 2]] and data.count_bytes(batch['targets']) == 0
  with pytest.raises(ValueError, match='holds id 70000, which Bytes.* does not have'):
    data.text('train', 9)


def test_config(source, tmp_path):
  assert hash(Data()) == hash(eval(repr(Data()))) and Data().source == StandardLibrary()
  data = Data(source)
  assert eval(repr(data)) == data
  assert Data('a.txt') == Data(Text('a.txt')) == eval(repr(Data('a.txt')))
  data.check(256)
  with pytest.raises(ValueError, match=r'model.vocab is 255, but Bytes\(\) needs at least 256'):
    data.check(255)
  for field in ('length', 'batch_size'):
    with pytest.raises(ValueError, match='both must be at least 1'):
      dataclasses.replace(data, **{field: 0})
  assert data.text('valid', 10**6) == ''.join(DOCUMENTS[40:52]).encode()
  assert data.text('valid', 50) == ''.join(DOCUMENTS[40:52]).encode()[:50]
  (tmp_path / 'nul.txt').write_text('a\0b')
  with pytest.raises(ValueError, match='nul.txt:0: the text holds a NUL character at position 1'):
    Data(Text(str(tmp_path / 'nul.txt'), piece=0, valid_share=0, test_share=0)).train_batches()


def test_cache_is_reused_and_follows_the_file(source, cache, tmp_path, monkeypatch):
  data = Data(source)
  first = data.fingerprint()
  assert len(os.listdir(cache)) == 3 and not [name for name in os.listdir(cache) if name.startswith('.')]
  corpus._load.cache_clear()
  with monkeypatch.context() as patch:
    patch.setattr(Bytes, 'encode_all', lambda *_: pytest.fail('tokenised again'))
    assert data.fingerprint() == first
    assert isinstance(corpus.load(source, Bytes(), 'train').tokens, np.memmap)
  (tmp_path / 'valid.jsonl').write_text('{"text": "other"}')
  assert data.fingerprint()['valid'] != first['valid'] and data.fingerprint()['train'] == first['train']


def test_a_failed_write_leaves_nothing(source, cache, monkeypatch):
  def fail(self, texts):
    yield np.array([1], np.int32)
    raise KeyboardInterrupt
  with monkeypatch.context() as patch:
    patch.setattr(Bytes, 'encode_all', fail)
    with pytest.raises(KeyboardInterrupt):
      Data(source).fingerprint()
  assert os.listdir(cache) == []
  assert Data(source).fingerprint()['train']['documents'] == 40


def test_two_processes_may_write_at_once(source, cache):
  code = f'from ssmlab.data import *; print(Data({source!r}).fingerprint())'
  running = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
  printed = [process.communicate()[0] for process in running]
  assert printed[0] == printed[1] == f'{Data(source).fingerprint()}\n' and len(os.listdir(cache)) == 3


def test_a_cache_that_cannot_be_written_is_not_fatal(source, tmp_path, monkeypatch, caplog):
  expected, batch = Data(source).fingerprint(), next(Data(source).train_batches())
  (tmp_path / 'file').write_text('in the way')
  monkeypatch.setenv('SSMLAB_CACHE', str(tmp_path / 'file' / 'cache'))
  with caplog.at_level(logging.WARNING):
    assert_equal([next(Data(source).train_batches())], [batch])
  assert len(caplog.records) == 1 and 'cannot be written' in caplog.text and 'SSMLAB_CACHE' in caplog.text
  assert Data(source).fingerprint() == expected


def test_default_corpus_records_python():
  found = Data().fingerprint()
  assert found['python'] == sys.version.split()[0] and found['train']['bytes'] > 4e6 and found['tokenizer'] == 'bytes'


@pytest.mark.skipif(not SHARED.is_dir(), reason='the novels are not beside the checkout')
def test_novels():
  data = Data(Text(*(str(SHARED / f'novels-{split}.jsonl.xz') for split in ('train', 'valid', 'test'))), length=4096)
  found = data.fingerprint()
  assert [found[split]['documents'] for split in ('train', 'valid', 'test')] == [44, 4, 4]
  batches = list(data.eval_batches('valid'))
  assert sum(data.count_bytes(batch['targets']) for batch in batches) == found['valid']['bytes']
  assert [bytes(ids).decode() for ids in documents(batches, 0)] == [text for _, text in data.source.documents('valid')]
