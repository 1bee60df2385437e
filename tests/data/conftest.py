import pathlib

import pytest
import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers, trainers


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """Every test has a cache of its own."""
  folder = tmp_path / 'cache'
  monkeypatch.setenv('SSMLAB_CACHE', str(folder))
  return folder


@pytest.fixture
def byte_level():
  return write_byte_level


@pytest.fixture
def rwkv():
  return write_rwkv


def write_byte_level(path: pathlib.Path) -> str:
  """A trained byte-level BPE of 320 ids, as a file."""
  tokenizer = hf.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=['<|endoftext|>'], show_progress=False,
                                initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
  tokenizer.train_from_iterator(['the quick brown fox, the lazy dog, café ' * 50], trainer)
  tokenizer.add_tokens(['   '])
  tokenizer.save(str(path))
  return str(path)


def write_rwkv(path: pathlib.Path, extra: tuple[bytes, ...] = ()) -> str:
  """The 256 bytes and a few longer entries, in the published format."""
  entries = [bytes([byte]) for byte in range(256)]
  entries += [text.encode() for text in (' a', 'the', 'the ', 'then', '\n\n', "it's", '世界', 'x\x85y')] + ['世'.encode()[:2], *extra]
  lines = []
  for token, entry in enumerate(entries, 1):
    try:
      literal = repr(entry.decode())
    except UnicodeDecodeError:
      literal = repr(entry)
    lines.append(f'{token} {literal} {len(entry)}\n')
  path.write_text(''.join(lines), encoding='utf-8', newline='')
  return str(path)
