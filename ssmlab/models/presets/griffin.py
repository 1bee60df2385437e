"""Griffin and RecurrentGemma at the published sizes.

Griffin: arXiv 2402.19427, table 2, window and gate blocks sections 3 and 4.1.  The paper does not say its vocabulary; with 32,000 ids and one
table for both ends the counts are the names of the table; other ids: the argument.  Author code google-deepmind/recurrentgemma (common.py)
has one of the sizes, GRIFFIN_PAPER_7B, with as many gate blocks as attention heads; the paper has 16 throughout, which we follow.

RecurrentGemma: arXiv 2404.07839, table 1, and the released config.json.
"""

from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.rglru import RGLRU
from ssmlab.models.lm import LM
from ssmlab.models.presets import sizes_of

# Layers, width, width of the recurrence, attention heads.
SIZES_GRIFFIN = {'100M': (12, 768, 1024, 6), '200M': (12, 1024, 1536, 8), '400M': (12, 1536, 2048, 12), '1.3B': (24, 2048, 2560, 16),
                 '3B': (24, 3072, 4096, 24), '7B': (32, 4096, 5632, 32), '14B': (40, 5120, 8192, 40)}

# Layers, width (and that of the recurrence), heads (and gate blocks), the factor on the embeddings: sqrt(width) rounded to bfloat16.
SIZES_RECURRENTGEMMA = {'2B': (26, 2560, 10, 50.5), '9B': (38, 4096, 16, 64.0)}


def griffin(size: str, vocab: int = 32000) -> LM:
  """Griffin: '100M', '200M', '400M', '1.3B', '3B', '7B' or '14B'."""
  depth, width, inner, heads = sizes_of('griffin', SIZES_GRIFFIN, size)
  return _lm(vocab, depth, width, RGLRU(inner=inner, heads=16), heads, window=1024)


def recurrentgemma(size: str) -> LM:
  """RecurrentGemma: '2B' or '9B'."""
  depth, width, heads, scale = sizes_of('recurrentgemma', SIZES_RECURRENTGEMMA, size)
  return _lm(256000, depth, width, RGLRU(inner=width, heads=heads), heads, window=2048, scale=scale, softcap=30.0)


def _lm(vocab: int, depth: int, width: int, recurrent: RGLRU, heads: int, window: int, scale: float = 1.0, softcap: float | None = None) -> LM:
  local = Attention(heads=heads, head_dim=width // heads, kv_heads=1, window=window, rotary_fraction=0.5, output_bias=True)
  return LM(vocab=vocab, width=width, depth=depth, pattern=(recurrent, recurrent, local), channel=GatedMLP(3 * width, 'gelu_tanh', bias=True),
            norm=RMSNorm(zero_centred=True), embedding=Embedding(scale=scale), head=Head(tied=True, softcap=softcap))
