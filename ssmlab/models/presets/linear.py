"""GLA, HGRN2 and linear attention at the published sizes.

GLA: arXiv 2312.06635, fla-hub/gla-340M-15B and gla-1.3B-100B.  HGRN2: arXiv 2404.07904, fla-hub/hgrn2-1.3B-100B.  The names leave out one of
the two tables of 32,000 ids.  Linear attention (arXiv 2006.16236) has no checkpoint of this kind: a baseline in the same frame, with the
heads of the Transformer++ it is measured against (presets/llama.py), so that the two differ in the mixer alone and have as many parameters.
"""

from ssmlab.mixers.gla import GLA
from ssmlab.mixers.hgrn2 import HGRN2
from ssmlab.mixers.linear_attention import LinearAttention
from ssmlab.models.lm import LM
from ssmlab.models.presets import llama_style, sizes_of

# Layers, width, width of the MLP: 8/3 of the width, rounded up to a multiple of 256.
SIZES = {'340M': (24, 1024, 2816), '1.3B': (24, 2048, 5632)}
SIZES_HGRN2 = {'1.3B': SIZES['1.3B']}


def gla(size: str) -> LM:
  """GLA: '340M' or '1.3B'."""
  depth, width, hidden = sizes_of('gla', SIZES, size)
  return llama_style(GLA(heads=4, head_dim=width // 8, eps=1e-6), depth, width, hidden)


def hgrn2(size: str) -> LM:
  """HGRN2: '1.3B'."""
  depth, width, hidden = sizes_of('hgrn2', SIZES_HGRN2, size)
  return llama_style(HGRN2(heads=width // 128, head_dim=128, eps=1e-6), depth, width, hidden)


def linear_attention(size: str) -> LM:
  """Linear attention at GLA's sizes: '340M' or '1.3B'."""
  depth, width, hidden = sizes_of('linear_attention', SIZES, size)
  return llama_style(LinearAttention(heads=width // 64, head_dim=64, bias=False), depth, width, hidden)
