"""Transformer baselines at published sizes.

Llama 2: arXiv 2307.09288.  Llama 3: arXiv 2407.21783 (3.0; from 3.1 on the rotary wavelengths are rescaled, which the lab does not do).
TinyLlama: arXiv 2401.02385.  Mistral: arXiv 2310.06825, v0.1.  Sizes are the released config.json's.
Transformer++: the baseline of GLA, arXiv 2312.06635, fla-hub/transformer-1.3B-100B and fla-org/flame, configs/transformer_340M.json.
"""

from ssmlab.mixers.attention import Attention
from ssmlab.models.lm import LM
from ssmlab.models.presets import llama_style, sizes_of

# Layers, width, heads, key/value heads, width of the MLP.  Heads are of width / heads.
SIZES_LLAMA2 = {'7B': (32, 4096, 32, 32, 11008), '13B': (40, 5120, 40, 40, 13824), '70B': (80, 8192, 64, 8, 28672)}
SIZES_LLAMA3 = {'8B': (32, 4096, 32, 8, 14336), '70B': (80, 8192, 64, 8, 28672)}
SIZES_TINYLLAMA = {'1.1B': (22, 2048, 32, 4, 5632)}
SIZES_MISTRAL = {'7B': (32, 4096, 32, 8, 14336)}
SIZES_TRANSFORMER = {'340M': (24, 1024, 16, 16, 2816), '1.3B': (24, 2048, 32, 32, 5632)}


def llama2(size: str) -> LM:
  """Llama 2: '7B', '13B' or '70B'."""
  return _lm(sizes_of('llama2', SIZES_LLAMA2, size))


def llama3(size: str) -> LM:
  """Llama 3: '8B' or '70B'."""
  return _lm(sizes_of('llama3', SIZES_LLAMA3, size), vocab=128256, theta=500000.0)


def tinyllama(size: str) -> LM:
  """TinyLlama: '1.1B'."""
  return _lm(sizes_of('tinyllama', SIZES_TINYLLAMA, size))


def mistral(size: str) -> LM:
  """Mistral v0.1: '7B'."""
  return _lm(sizes_of('mistral', SIZES_MISTRAL, size), window=4096)


def transformer(size: str) -> LM:
  """Transformer++ of the linear attention papers: '340M' or '1.3B'."""
  return _lm(sizes_of('transformer', SIZES_TRANSFORMER, size), eps=1e-6)


def _lm(sizes: tuple[int, int, int, int, int], vocab: int = 32000, theta: float = 10000.0, window: int | None = None, eps: float = 1e-5) -> LM:
  depth, width, heads, kv_heads, hidden = sizes
  return llama_style(Attention(heads=heads, head_dim=width // heads, kv_heads=kv_heads, theta=theta, window=window), depth, width, hidden, vocab, eps)
