"""Formats, compression, splits and what bad files say."""

import gzip
import json
import lzma
import sysconfig

import numpy as np
import pytest
import zstandard

from ssmlab.data import SPLITS, ArrayRecord, EmptySplit, StandardLibrary, Text, Tokens

DOCUMENTS = [f'document {i}: naïve 世界 🌍\n' + 'line of text\r\n' * (i % 5) for i in range(40)]


def two_frames(data: bytes) -> bytes:
  return zstandard.compress(data[:50]) + zstandard.compress(data[50:])


PACK = {'': lambda data: data, '.gz': gzip.compress, '.xz': lzma.compress, '.zst': two_frames}


def everything(source) -> list:
  return [document for split in SPLITS for _, document in source.documents(split)]


def jsonl(documents, **fields) -> bytes:
  return ''.join(json.dumps(dict(text=text, **fields), ensure_ascii=False) + '\n' for text in documents).encode()


@pytest.mark.parametrize('suffix', PACK)
def test_jsonl(tmp_path, suffix):
  path = tmp_path / f'a.jsonl{suffix}'
  path.write_bytes(PACK[suffix](b'\xef\xbb\xbf' + jsonl(DOCUMENTS) + b'\n'))
  source = Text(str(path))
  assert eval(repr(source)) == source
  assert sorted(everything(source)) == sorted(DOCUMENTS)
  assert everything(source) == everything(source)


@pytest.mark.parametrize('suffix', PACK)
def test_lone_text_is_cut_and_split(tmp_path, suffix):
  text = ''.join(DOCUMENTS)
  path = tmp_path / f'a.txt{suffix}'
  path.write_bytes(PACK[suffix](text.encode()))
  source = Text(str(path), valid_share=0.1, test_share=0.2)
  sizes = [len(list(source.documents(split))) for split in SPLITS]
  assert min(sizes) >= 2 and sum(sizes) >= 20
  pieces = {name: piece for split in SPLITS for name, piece in source.documents(split)}
  assert ''.join(pieces[name] for name in sorted(pieces, key=lambda name: int(name.rsplit(':', 1)[1]))) == text
  assert all(piece.endswith('\n') for piece in pieces.values())
  assert everything(Text(str(path), piece=0, valid=str(path), test=str(path))) == [text] * 3


def test_cut_without_line_ends(tmp_path):
  (tmp_path / 'a.txt').write_text(''.join(f'{i:04d} ' for i in range(300)) + ''.join(f'{i:04d}x' for i in range(180)))
  pieces = everything(Text(str(tmp_path / 'a.txt'), piece=100))
  assert sum(map(len, pieces)) == 2400 and max(map(len, pieces)) == 100
  with pytest.raises(ValueError, match='piece -1'):
    Text('a', piece=-1)


def test_folder_and_glob(tmp_path):
  for name in ('b.txt', 'a/z.md', 'a/c.py', '.hidden/h.txt', 'a/empty.txt'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('' if 'empty' in name else name)
  (tmp_path / 'a/d.jsonl').write_bytes(jsonl(['one', 'two']))
  found = {name.split(str(tmp_path))[1]: text for split in SPLITS for name, text in Text(str(tmp_path)).documents(split)}
  assert found == {'/a/c.py:0': 'a/c.py', '/a/d.jsonl:0': 'one', '/a/d.jsonl:1': 'two', '/a/z.md:0': 'a/z.md', '/b.txt:0': 'b.txt'}
  some = Text(str(tmp_path / 'a' / '*.[mp]*'), valid_share=0, test_share=0)
  assert [text for _, text in some.documents('train')] == ['a/c.py', 'a/z.md']


@pytest.mark.parametrize('row_groups', (7, 1000))
def test_parquet(tmp_path, row_groups):
  pyarrow = pytest.importorskip('pyarrow')
  import pyarrow.parquet
  path = str(tmp_path / 'a.parquet')
  pyarrow.parquet.write_table(pyarrow.table(dict(body=[*DOCUMENTS, None, ''], n=range(42))), path, row_group_size=row_groups)
  assert sorted(everything(Text(path, field='body'))) == sorted(DOCUMENTS)
  with pytest.raises(ValueError, match="no column 'text'; it has 'body', 'n'"):
    everything(Text(path))
  with pytest.raises(ValueError, match="column 'n' holds int, not text"):
    everything(Text(path, field='n'))


def test_array_record(tmp_path):
  from array_record.python.array_record_module import ArrayRecordWriter
  path = str(tmp_path / 'a.array_record')
  writer = ArrayRecordWriter(path, 'group_size:1')
  for text in DOCUMENTS:
    writer.write(text.encode())
  writer.close()
  assert sorted(everything(ArrayRecord(path))) == sorted(DOCUMENTS)
  (tmp_path / 'bad').write_bytes(b'nothing of the kind' * 10)
  with pytest.raises(ValueError, match='bad cannot be read as ArrayRecord'):
    everything(ArrayRecord(str(tmp_path / 'bad')))


@pytest.mark.parametrize('dtype', ('uint16', 'uint32', 'npy'))
def test_tokens(tmp_path, dtype):
  ids = np.concatenate([np.append(np.arange(1, 2 + i), 50) for i in range(30)])
  path = str(tmp_path / ('a.npy' if dtype == 'npy' else 'a.bin'))
  if dtype == 'npy':
    np.save(path, ids)
    source = Tokens(path, end=50)
  else:
    ids.astype(dtype).tofile(path)
    source = Tokens(path, dtype, end=50)
  found = sorted((len(document), document.tolist()) for document in everything(source))
  assert found == [(i + 1, list(range(1, 2 + i))) for i in range(30)]
  assert source.largest() == 50
  whole = Tokens(path, source.dtype, valid=path, test=path)
  assert all((document == ids).all() for document in everything(whole)) and len(everything(whole)) == 3


def test_splits_are_disjoint_and_keep_duplicates_together(tmp_path):
  (tmp_path / 'a.jsonl').write_bytes(jsonl(DOCUMENTS * 3))
  source = Text(str(tmp_path / 'a.jsonl'), valid_share=0.2, test_share=0.1)
  train, valid, test = ([text for _, text in source.documents(split)] for split in SPLITS)
  assert not set(train) & set(valid) and not set(train) & set(test) and not set(valid) & set(test)
  assert (len(set(train)), len(set(valid)), len(set(test))) == (28, 8, 4) and len(train + valid + test) == 120
  # Where the documents are and in which order does not matter.
  (tmp_path / 'b.jsonl').write_bytes(jsonl(DOCUMENTS[::-1]))
  other = Text(str(tmp_path / 'b.jsonl'), valid_share=0.2, test_share=0.1)
  assert {text for _, text in other.documents('valid')} == set(valid)


def test_named_files_are_the_split(tmp_path):
  for name, part in (('train', DOCUMENTS[:30]), ('valid', DOCUMENTS[30:35])):
    (tmp_path / f'{name}.jsonl').write_bytes(jsonl(part))
  source = Text(str(tmp_path / 'train.jsonl'), valid=str(tmp_path / 'valid.jsonl'), test_share=0.1)
  train, valid, test = ([text for _, text in source.documents(split)] for split in SPLITS)
  assert valid == DOCUMENTS[30:35] and len(test) == 3 and sorted(train + test) == sorted(DOCUMENTS[:30])


@pytest.mark.parametrize('count, sizes', ((1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (4, (2, 1, 1))))
def test_few_documents(tmp_path, count, sizes):
  (tmp_path / 'a.jsonl').write_bytes(jsonl(DOCUMENTS[:count]))
  source = Text(str(tmp_path / 'a.jsonl'))
  for split, size in zip(SPLITS, sizes):
    if size:
      assert len(list(source.documents(split))) == size
    else:
      with pytest.raises(EmptySplit, match=f"a.jsonl: split '{split}' holds no document; .*data.source.{split}_share"):
        list(source.documents(split))


def test_bad_splits():
  with pytest.raises(ValueError, match="split 'validation': must be one of train, valid, test"):
    next(Text('a').documents('validation'))
  with pytest.raises(ValueError, match='their sum below 1'):
    StandardLibrary(valid_share=0.5, test_share=0.5)


BAD = {
    'missing.txt': (None, 'missing.txt: no such file or folder'),
    'none*.txt': (None, r'none\*.txt: no file there'),
    'empty.txt': (b'', 'empty.txt is empty'),
    'empty.jsonl': (b'\n\n', 'empty.jsonl is empty'),
    'latin.txt': (('x' * 99 + 'é').encode('latin-1'), 'latin.txt is not UTF-8: byte 0xe9 at offset 99'),
    'latin.jsonl': (jsonl(['a']) + b'{"text": "\xff"}', 'latin.jsonl is not UTF-8: byte 0xff at offset 24'),
    'field.jsonl': (jsonl(['a']) + b'{"body": "b"}', "field.jsonl, line 2: no text in field 'text' .*'body'"),
    'number.jsonl': (b'{"text": 3}', "number.jsonl, line 1: no text in field 'text'"),
    'list.jsonl': (b'["text"]', 'list.jsonl, line 1: no text'),
    'broken.jsonl': (b'\n{"text": ', 'broken.jsonl, line 2: not JSON'),
    'half.jsonl': (b'{"text": "a\\ud800"}', 'half.jsonl, line 1: character 1 is half of a surrogate pair'),
    'pointer.txt': (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n', 'pointer.txt is a Git LFS pointer'),
    'pointer.parquet': (b'version https://git-lfs.github.com/spec/v1\n', 'is a Git LFS pointer'),
    'cut.txt.gz': (gzip.compress(b'abc' * 99)[:-9], 'cut.txt.gz cannot be decompressed'),
    'cut.txt.xz': (lzma.compress(b'abc' * 99)[:-9], 'cut.txt.xz cannot be decompressed'),
    'cut.jsonl.zst': (zstandard.compress(jsonl(DOCUMENTS))[:-9], 'cut.jsonl.zst cannot be decompressed'),
    'no.txt.gz': (b'plain', 'no.txt.gz cannot be decompressed'),
    'no.txt.xz': (b'plain', 'no.txt.xz cannot be decompressed'),
    'no.txt.zst': (b'plain text', 'no.txt.zst cannot be decompressed'),
    'no.parquet': (b'plain text', 'no.parquet cannot be read as parquet'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_text_files(tmp_path, name):
  content, message = BAD[name]
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message) as raised:
    everything(Text(str(tmp_path / name)))
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize('name, content, message', [
    ('a.bin', b'', 'a.bin is empty'), ('a.bin', b'abc', '3 bytes are not a whole number of uint16'),
    ('a.npy', b'abc', 'a.npy cannot be read as .npy'), ('a.bin', b'version https://git-lfs 1', 'Git LFS pointer'),
    ('f.npy', np.zeros(3), 'needs integers >= 0 along one axis, has float64'), ('n.npy', np.array([-1]), 'needs integers >= 0'),
    ('d.npy', np.zeros((2, 2), int), r'has int64 \[2, 2\]')])
def test_bad_token_files(tmp_path, name, content, message):
  if isinstance(content, bytes):
    (tmp_path / name).write_bytes(content)
  else:
    np.save(tmp_path / name, content)
  with pytest.raises(ValueError, match=message):
    everything(Tokens(str(tmp_path / name)))
  with pytest.raises(ValueError, match="dtype 'int8'"):
    Tokens('a', dtype='int8')


def test_standard_library(tmp_path, monkeypatch):
  """A small tree in its place: what is left out, and that copies count once."""
  for name in ('b.py', 'a/x.py', 'a/copy.py', 'test/t.py', 'a/tests/t.py', 'site-packages/p.py', 'a/data.txt', 'a/empty.py', 'c.py'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b'' if 'empty' in name else b'same' if name in ('b.py', 'a/copy.py') else b'# \xe9' + name.encode())
  monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(tmp_path))
  found = {name: text for split in SPLITS for name, text in StandardLibrary().documents(split)}
  assert found == {'a/copy.py': 'same', 'a/x.py': '# \ufffda/x.py', 'c.py': '# \ufffdc.py'}
  monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(tmp_path / 'gone'))
  with pytest.raises(ValueError, match='no source files of its standard library here; name a text file: data.source=FILE'):
    list(StandardLibrary().documents('train'))


def test_real_standard_library():
  source = StandardLibrary()
  parts = [[text for _, text in source.documents(split)] for split in SPLITS]
  total = sum(len(text) for part in parts for text in part)
  assert total > 5e6 and all(len(part) > 15 for part in parts) and sum(map(len, parts[1])) < total / 5


@pytest.mark.parametrize('name', ('a.txt', 'a.jsonl'))
def test_documents_between_separators(name, tmp_path):
  text = 'One\nline.\n\nTwo.\n\n\n\nThree.'
  (tmp_path / name).write_bytes(jsonl([text]) if name.endswith('l') else text.encode())
  source = Text(str(tmp_path / name), valid=str(tmp_path / name), test=str(tmp_path / name), separator='\n\n')
  assert [document for _, document in source.documents('train')] == ['One\nline.', 'Two.', 'Three.']
