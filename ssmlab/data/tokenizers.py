"""Text to ids and back: bytes, Hugging Face tokenizer.json, RWKV World.

A tokenizer is part of an experiment's config: a frozen dataclass of strings, so that it is hashable and its repr is the record.  What it
loads from a file is cached by path.  All three have `vocab` (number of ids), `end` (the id that opens and closes a document), `encode`,
`decode`, `stream`, `pieces` and `fingerprint`.
"""

import ast
import codecs
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable

import numpy as np
import tokenizers as hf

from ssmlab.data.files import read_bytes


class Stream:
  """Decodes one id at a time and holds back a character until all its bytes are there."""

  def __init__(self, pieces: tuple[bytes, ...]):
    self._pieces = pieces
    self._decoder = codecs.getincrementaldecoder('utf-8')('replace')

  def push(self, token: int) -> str:
    """The text that `token` completes; '' while a character is incomplete."""
    return self._decoder.decode(_piece(self._pieces, int(token)))

  def flush(self) -> str:
    """What is still held back, as U+FFFD; the stream then starts afresh."""
    rest = self._decoder.decode(b'', final=True)
    self._decoder.reset()
    return rest


def _integers(ids: Iterable[int]) -> list[int]:
  return np.asarray(ids, np.int64).tolist()


def _piece(pieces: tuple[bytes, ...], token: int) -> bytes:
  return pieces[token] if 0 <= token < len(pieces) else b''


class Tokenizer:
  """What the three share; each needs only `pieces`: the bytes that every id stands for."""

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`.  Bytes that are not UTF-8 become U+FFFD; ids that stand for nothing, as in a padded vocabulary, are left out."""
    pieces = self.pieces()
    return b''.join(_piece(pieces, token) for token in _integers(ids)).decode('utf-8', 'replace')

  def encode_all(self, texts: list[str]) -> Iterable[np.ndarray]:
    """`encode` of each."""
    return map(self.encode, texts)

  def stream(self) -> Stream:
    """A decoder that takes one id at a time."""
    return Stream(self.pieces())


@dataclasses.dataclass(frozen=True)
class Bytes(Tokenizer):
  """UTF-8 bytes: id = byte.  NUL, which text does not contain, is `end`."""

  vocab = 256
  end = 0

  def encode(self, text: str) -> np.ndarray:
    """int32 [bytes].  Raises ValueError if the text holds a NUL, which would read as the end of the document."""
    if '\0' in text:
      raise ValueError(f'the text holds a NUL character at position {text.index(chr(0))}; the byte tokenizer uses NUL to end a document')
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

  def pieces(self) -> tuple[bytes, ...]:
    return _BYTES

  def fingerprint(self) -> str:
    return 'bytes'


_BYTES = tuple(bytes([byte]) for byte in range(256))


@dataclasses.dataclass(frozen=True)
class HFTokenizer(Tokenizer):
  """A Hugging Face tokenizer.json, also .gz, .xz or .zst.

  end_token: opens and closes a document; ValueError where the file has no such token.
  Text is only text: a special token spelled out in it is encoded as ordinary characters, so that data cannot end a document.
  Where the file normalises text or writes a space before it, `pieces` counts the text as encoded, not as given.
  """

  path: str
  end_token: str = '<|endoftext|>'

  @property
  def vocab(self) -> int:
    return len(self.pieces())

  @property
  def end(self) -> int:
    tokenizer = _load_hf(self.path)[0]
    found = tokenizer.token_to_id(self.end_token)
    if found is None:
      special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
      likely = special or [token for token in sorted(tokenizer.get_vocab()) if re.fullmatch(r'[<\[].*[>\]]', token)]
      names = ', '.join(map(repr, likely[:6])) or 'no special tokens'
      raise ValueError(f'{self.path} has no token {self.end_token!r} to end a document; it has {names}')
    return found

  def encode(self, text: str) -> np.ndarray:
    """int32 [tokens], without the special tokens that the file's post-processor would add."""
    return np.array(_load_hf(self.path)[0].encode(text, add_special_tokens=False).ids, np.int32)

  def encode_all(self, texts: list[str]) -> Iterable[np.ndarray]:
    return [np.array(found.ids, np.int32) for found in _load_hf(self.path)[0].encode_batch_fast(texts, add_special_tokens=False)]

  def decode(self, ids: Iterable[int]) -> str:
    """As the file's decoder has it: unlike `stream`, which continues a text, it may drop a space before the first word."""
    return _load_hf(self.path)[0].decode(_integers(ids), skip_special_tokens=False)

  def pieces(self) -> tuple[bytes, ...]:
    return _load_hf(self.path)[1]

  def fingerprint(self) -> str:
    return f'hf-{_digest(self.path)}-{self.end_token}'


@functools.cache
def _load_hf(path: str) -> tuple[hf.Tokenizer, tuple[bytes, ...]]:
  data = read_bytes(path)
  try:
    tokenizer = hf.Tokenizer.from_str(data.decode())
    decoder = json.dumps(json.loads(data).get('decoder'))
  except Exception as error:      # the package raises bare Exception
    raise ValueError(f'{path} is not a Hugging Face tokenizer.json: {error}') from None
  tokenizer.no_truncation()
  tokenizer.no_padding()
  tokenizer.encode_special_tokens = True
  tokens = {token: text for text, token in tokenizer.get_vocab(with_added_tokens=True).items()}
  piece = _byte_level if '"ByteLevel"' in decoder else _continuation(tokenizer, byte_fallback='"ByteFallback"' in decoder)
  return tokenizer, tuple(piece(tokens[i], i) if i in tokens else b'' for i in range(max(tokens) + 1))


def _byte_level(text: str, _token: int) -> bytes:
  """The bytes of a token of byte-level BPE; an added token with other characters, e.g. spaces, stands for itself."""
  table = _byte_alphabet()
  return bytes(table[c] for c in text) if all(c in table for c in text) else text.encode()


@functools.cache
def _byte_alphabet() -> dict[str, int]:
  """GPT-2's printable character for each byte: itself where printable, else the next free one from U+0100."""
  printable = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
  others = [byte for byte in range(256) if byte not in printable]
  return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _continuation(tokenizer: hf.Tokenizer, byte_fallback: bool):
  """Pieces of other decoders (SentencePiece, WordPiece): what a token adds to the text when it follows another one."""
  before = tokenizer.encode('a', add_special_tokens=False).ids
  prefix = tokenizer.decode(before, skip_special_tokens=False)

  def piece(text: str, token: int) -> bytes:
    byte = re.fullmatch(r'<0x([0-9A-F]{2})>', text) if byte_fallback else None
    if byte:
      return bytes([int(byte[1], 16)])
    return tokenizer.decode([*before, token], skip_special_tokens=False).removeprefix(prefix).encode()
  return piece


@dataclasses.dataclass(frozen=True)
class RWKVWorld(Tokenizer):
  """RWKV World vocabulary file (BlinkDL/ChatRWKV, tokenizer/rwkv_vocab_v20230424.txt), also compressed.

  Encoding takes the longest entry that fits, again and again: no merges, no normalisation.  `end` = 0 is not in the file.
  """

  path: str
  vocab = 65536
  end = 0

  def encode(self, text: str) -> np.ndarray:
    """int32 [tokens]."""
    index, lengths, _ = _load_rwkv(self.path)
    data, at, ids = text.encode(), 0, []
    while at < len(data):
      for length in lengths[data[at:at + 2]] if data[at:at + 2] in lengths else (1,):
        token = index.get(data[at:at + length])
        if token is not None:
          break
      ids.append(token)
      at += length          # may overshoot at the very end, where the slice was the whole rest
    return np.array(ids, np.int32)

  def pieces(self) -> tuple[bytes, ...]:
    return _load_rwkv(self.path)[2]

  def fingerprint(self) -> str:
    return f'rwkv-{_digest(self.path)}'


@functools.cache
def _load_rwkv(path: str) -> tuple[dict[bytes, int], dict[bytes, tuple[int, ...]], tuple[bytes, ...]]:
  """Id of each entry, lengths to try (longest first) for each two-byte beginning, entry of each id."""
  pieces, index, lengths = [b''] * RWKVWorld.vocab, {}, {}
  for number, line in enumerate(read_bytes(path).decode('utf-8', 'replace').split('\n'), 1):    # entries may hold other line ends
    if line:
      token, entry = _rwkv_line(path, number, line)
      if entry in index or pieces[token]:
        raise ValueError(f'{path}, line {number}: id {token} or its entry appears twice')
      pieces[token] = entry
      index[entry] = token
      lengths.setdefault(entry[:2], set()).add(len(entry))
  lacking = [byte for byte in range(256) if bytes([byte]) not in index]
  if lacking:
    raise ValueError(f'{path} has no entry for the single byte 0x{lacking[0]:02x} ({len(lacking)} of 256 are lacking)')
  return index, {k: tuple(sorted(v | {1}, reverse=True)) for k, v in lengths.items()}, tuple(pieces)


def _rwkv_line(path: str, number: int, line: str) -> tuple[int, bytes]:
  """Id and bytes of `<id> <python literal> <length in bytes>`; the literal may hold spaces."""
  try:
    token, rest = line.split(' ', 1)
    literal, length = rest.rsplit(' ', 1)
    entry = ast.literal_eval(literal)
    entry = entry.encode() if isinstance(entry, str) else entry
    token, length = int(token), int(length)
  except (ValueError, SyntaxError):
    raise ValueError(f'{path}, line {number}: not `<id> <python literal> <length>`: {line[:60]!r}') from None
  if not isinstance(entry, bytes) or len(entry) != length or not length:
    raise ValueError(f'{path}, line {number}: the entry does not have the {length} bytes that the line states')
  if not 0 < token < RWKVWorld.vocab:
    raise ValueError(f'{path}, line {number}: id {token} is not in 1..{RWKVWorld.vocab - 1}')
  return token, entry


@functools.lru_cache(maxsize=8)
def word_starts(tokenizer: Tokenizer) -> np.ndarray:
  """bool [vocab]: whether a token begins a word, i.e. its text begins with a space or another sign than a letter or digit.

  Bytes above 127 are taken for parts of letters; tokens without text begin one.
  """
  inside = lambda piece: piece[:1].isalnum() or piece[:1] >= b'\x80'
  return np.array([not inside(piece) for piece in tokenizer.pieces()])


@functools.cache
def _digest(path: str) -> str:
  return hashlib.sha256(read_bytes(path)).hexdigest()[:16]
