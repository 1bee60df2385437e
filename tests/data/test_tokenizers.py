"""Encoding, decoding, streaming and byte counts of the three tokenizers."""

import gzip
import lzma
import pathlib

import numpy as np
import pytest
import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers

from ssmlab.data import Bytes, HFTokenizer, RWKVWorld

TEXTS = ('', 'a', 'Hello, world!\n', 'naïve café', '你好，世界 🌍', '  x = 1\n\tif y:\r\n', 'न\u200dि ﷽ \u0301', '<|endoftext|> is text')
SHARED = pathlib.Path(__file__).parents[2].parent / 'shared' / 'data' / 'tokenizer'


@pytest.fixture(params=['bytes', 'hf', 'rwkv'])
def tokenizer(request, tmp_path, byte_level, rwkv):
  if request.param == 'bytes':
    return Bytes()
  return HFTokenizer(byte_level(tmp_path / 'tokenizer.json')) if request.param == 'hf' else RWKVWorld(rwkv(tmp_path / 'vocab.txt'))


@pytest.mark.parametrize('text', TEXTS)
def test_round_trip(tokenizer, text):
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32 and tokenizer.end not in ids
  assert tokenizer.decode(ids) == text
  assert b''.join(tokenizer.pieces()[token] for token in ids) == text.encode()
  stream = tokenizer.stream()
  assert ''.join(stream.push(token) for token in ids) + stream.flush() == text
  assert [list(found) for found in tokenizer.encode_all([text, 'b'])] == [list(ids), list(tokenizer.encode('b'))]


def test_is_config(tokenizer):
  assert eval(repr(tokenizer)) == tokenizer and hash(tokenizer) == hash(eval(repr(tokenizer)))
  assert len(tokenizer.pieces()) == tokenizer.vocab and 0 <= tokenizer.end < tokenizer.vocab
  assert tokenizer.decode([tokenizer.vocab + 5, *tokenizer.encode('a')]) == 'a'      # an id of a padded embedding


def test_stream_holds_back_incomplete_characters():
  stream = Bytes().stream()
  assert [stream.push(byte) for byte in 'é🌍'.encode()] == ['', 'é', '', '', '', '🌍']
  assert stream.push(0xf0) == '' and stream.flush() == '\ufffd' and stream.flush() == ''
  assert stream.push(0x41) == 'A'
  assert stream.push(0xf0) + stream.push(0x41) == '\ufffdA'


def test_bytes_refuse_nul():
  with pytest.raises(ValueError, match='NUL character at position 1'):
    Bytes().encode('a\0')


def test_fingerprint_is_of_the_content(tmp_path, byte_level, rwkv):
  one, other = byte_level(tmp_path / 'a.json'), str(tmp_path / 'b.json.gz')
  with gzip.open(other, 'wb') as file:
    file.write(pathlib.Path(one).read_bytes())
  assert HFTokenizer(one).fingerprint() == HFTokenizer(other).fingerprint() != HFTokenizer(one, end_token='a').fingerprint()
  first = rwkv(tmp_path / 'a.txt')
  assert RWKVWorld(first).fingerprint() != RWKVWorld(rwkv(tmp_path / 'b.txt', extra=[b'more'])).fingerprint()
  with lzma.open(tmp_path / 'c.txt.xz', 'wb') as file:
    file.write(pathlib.Path(first).read_bytes())
  assert RWKVWorld(str(tmp_path / 'c.txt.xz')).fingerprint() == RWKVWorld(first).fingerprint()


def test_hf_errors(tmp_path, byte_level):
  path = byte_level(tmp_path / 'tokenizer.json')
  with pytest.raises(ValueError, match=r"no token '<eos>' .* it has '<\|endoftext\|>'"):
    HFTokenizer(path, end_token='<eos>').end
  (tmp_path / 'bad.json').write_text('{}')
  with pytest.raises(ValueError, match='bad.json is not a Hugging Face tokenizer.json'):
    HFTokenizer(str(tmp_path / 'bad.json')).vocab
  with pytest.raises(ValueError, match='gone.json cannot be read'):
    HFTokenizer(str(tmp_path / 'gone.json')).vocab


def test_hf_pieces_of_other_decoders(tmp_path):
  """A WordPiece and a SentencePiece-like file: the stream continues a text, so the pieces are what follows another token."""
  vocab = {'[UNK]': 0, '[SEP]': 1, 'a': 2, 'play': 3, '##ing': 4, 'now': 5}
  words = hf.Tokenizer(models.WordPiece(vocab, unk_token='[UNK]'))
  words.normalizer, words.pre_tokenizer, words.decoder = normalizers.Lowercase(), pre_tokenizers.Whitespace(), decoders.WordPiece()
  words.save(str(tmp_path / 'words.json'))
  tokenizer = HFTokenizer(str(tmp_path / 'words.json'), end_token='[SEP]')
  ids, stream = tokenizer.encode('Playing now'), tokenizer.stream()
  assert ids.tolist() == [3, 4, 5] and tokenizer.decode(ids) == 'playing now'
  assert ''.join(stream.push(token) for token in ids) == ' playing now'

  scores = [('<unk>', 0.0), ('</s>', 0.0), ('▁a', -1.0), ('▁the', -1.0), ('n', -2.0), ('▁', -3.0)]
  scores += [(f'<0x{byte:02X}>', -9.0) for byte in range(256)]
  pieces = hf.Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
  pieces.pre_tokenizer = pre_tokenizers.Metaspace()
  pieces.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
  pieces.save(str(tmp_path / 'pieces.json'))
  tokenizer = HFTokenizer(str(tmp_path / 'pieces.json'), end_token='</s>')
  ids, stream = tokenizer.encode('the 世n'), tokenizer.stream()
  assert tokenizer.decode(ids) == 'the 世n'
  assert ''.join(stream.push(token) for token in ids) == ' the 世n'


def test_rwkv_takes_the_longest(tmp_path, rwkv):
  tokenizer = RWKVWorld(rwkv(tmp_path / 'vocab.txt'))
  pieces = tokenizer.pieces()
  assert [pieces[token] for token in tokenizer.encode('then the thex\x85y')] == [b'then', b' ', b'the ', b'the', 'x\x85y'.encode()]
  assert [pieces[token] for token in tokenizer.encode('世世界th')] == ['世'.encode()[:2], '世'.encode()[2:], '世界'.encode(), b't', b'h']


@pytest.mark.parametrize('line, message', [
    ("300 'abc' 4", 'line 266: the entry does not have the 4 bytes'), ("70000 'abc' 3", 'line 266: id 70000 is not in 1..65535'),
    ("3 'abc' 3", 'line 266: id 3 or its entry appears twice'), ("300 'the' 3", 'appears twice'),
    ("300 __import__('os') 2", 'line 266: not `<id>'), ('300', 'line 266: not `<id>'), ('300 12 2', 'line 266')])
def test_rwkv_errors(tmp_path, rwkv, line, message):
  path = pathlib.Path(rwkv(tmp_path / 'vocab.txt'))
  with open(path, 'a', encoding='utf-8') as file:
    file.write(line + '\n')
  with pytest.raises(ValueError, match=message):
    RWKVWorld(str(path)).encode('a')


def test_rwkv_needs_every_byte(tmp_path):
  (tmp_path / 'vocab.txt').write_text("1 'a' 1\n")
  with pytest.raises(ValueError, match='no entry for the single byte 0x00'):
    RWKVWorld(str(tmp_path / 'vocab.txt')).encode('a')


@pytest.mark.skipif(not SHARED.is_dir(), reason='the published vocabularies are not beside the checkout')
def test_published_vocabularies():
  """Ids computed with the authors' code."""
  world = RWKVWorld(str(SHARED / 'rwkv_vocab_v20230424.txt.xz'))
  examples = {'Hello, world!': [33155, 45, 40213, 34], 'The quick brown fox\n\n': [6699, 39418, 37917, 21704, 261],
              '你好，世界 🌍': [10464, 11685, 19137, 10267, 14610, 33, 3319, 141, 142],
              '  x = 1\n\tif y:': [267, 121, 296, 284, 260, 1942, 356, 59], 'naïve café': [2059, 27698, 37946]}
  neox = HFTokenizer(str(SHARED / '20B_tokenizer.json.xz'))
  assert neox.vocab == 50277 and neox.end == 0
  for text, ids in examples.items():
    assert world.encode(text).tolist() == ids
    stream = neox.stream()
    assert ''.join(stream.push(token) for token in neox.encode(text)) == text
