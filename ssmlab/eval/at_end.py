"""Evaluators that make a run's end readable: a sample of text, and what general compressors make of the same bytes."""

import dataclasses
import gzip
import lzma

import jax
import numpy as np

from ssmlab.eval.generate import generate


@dataclasses.dataclass(frozen=True)
class Sample:
  """Prints a continuation of `prompt`.  tokens: how many.  every: steps between samples; 0: at the end only."""
  prompt: str = ''
  tokens: int = 200
  temperature: float = 0.8
  top_p: float = 0.95
  seed: int = 0
  every: int = 0

  def run(self, experiment, mesh, params, final: bool) -> dict[str, str]:
    tokenizer, end = experiment.data.tokenizer, experiment.data.end
    prompt = np.concatenate([[end], tokenizer.encode(self.prompt)]).astype(np.int32)
    tokens, _ = generate(experiment.model, params, [prompt], self.tokens, self.temperature, self.top_p, jax.random.key(self.seed))
    return dict(text=self.prompt + tokenizer.decode(tokens[0]))


@dataclasses.dataclass(frozen=True)
class Padding:
  """Share of a batch that is padding, one document in a row and packed (data.Documents)."""
  split: str = 'train'
  every: int = 0

  def run(self, experiment, mesh, params, final: bool) -> dict[str, float]:
    wasted = experiment.data.wasted
    return dict(wasted_unpacked=wasted(self.split, pack=False), wasted_packed=wasted(self.split, pack=True))


@dataclasses.dataclass(frozen=True)
class Compressors:
  """Bits per byte of `gzip -9` and `xz -9` over the split's bytes in one piece: what a model must beat to have learnt anything."""
  split: str = 'valid'
  max_bytes: int = 2 ** 30
  every: int = 0

  def run(self, experiment, mesh, params, final: bool) -> dict[str, float]:
    data = experiment.data.text(self.split, self.max_bytes)
    rate = lambda compressed: 8 * len(compressed) / len(data)
    return dict(gzip_bits_per_byte=rate(gzip.compress(data, 9)), xz_bits_per_byte=rate(lzma.compress(data, preset=9)))
