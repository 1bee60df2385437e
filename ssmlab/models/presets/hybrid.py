"""Hybrids of recurrent blocks with a few of full attention, in the published proportions.

Qwen3.5: three Gated DeltaNet, one gated attention.  The released dense models (their config.json), of which only the text part is here: no
vision tower, no multi-token prediction.

Kimi Linear, arXiv 2510.26692: three KDA, one attention without positions.  The released 48B-A3B is a mixture of experts with multi-head
latent attention, neither of which the lab has; here the pattern is dense, with plain attention of as many heads.

Jamba, arXiv 2403.19887: one attention without positions in eight blocks, the fifth; Mamba in the others.  Jamba is a mixture of experts in
every other block and normalises dt, B and C inside Mamba; here all blocks are dense and Mamba is the original.
"""

from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.gated_deltanet import GatedDeltaNet
from ssmlab.mixers.kda import KDA
from ssmlab.mixers.mamba1 import Mamba1
from ssmlab.models.lm import LM
from ssmlab.models.presets import sizes_of

# Layers, width, width of the MLP, attention heads, their key/value heads, value heads of Gated DeltaNet, whether the head is the embedding.
SIZES_QWEN3_5 = {'0.8B': (24, 1024, 3584, 8, 2, 16, True), '2B': (24, 2048, 6144, 8, 2, 16, True), '4B': (32, 2560, 9216, 16, 4, 32, True),
                 '9B': (32, 4096, 12288, 16, 4, 32, False), '27B': (64, 5120, 17408, 24, 4, 48, False)}


def qwen3_5(size: str) -> LM:
  """Qwen3.5, dense, text: '0.8B', '2B', '4B', '9B' or '27B'."""
  depth, width, hidden, heads, kv_heads, value_heads, tied = sizes_of('qwen3_5', SIZES_QWEN3_5, size)
  norm = RMSNorm(zero_centred=True)
  delta = GatedDeltaNet(heads=16, head_dim=128, value_heads=value_heads, value_dim=128, eps=1e-6)
  full = Attention(heads=heads, head_dim=256, kv_heads=kv_heads, theta=1e7, rotary_fraction=0.25, qk_norm=norm, gate=True)
  return LM(vocab=248320, width=width, depth=depth, pattern=(delta, delta, delta, full), channel=GatedMLP(hidden), norm=norm, embedding=Embedding(),
            head=Head(tied=tied))


def kimi_linear(depth: int, width: int, heads: int, vocab: int = 163840) -> LM:
  """Kimi Linear's pattern, dense.

  Heads of 128 in both kinds of block, and an MLP of four times the width as in the released model's one dense layer.  Published (table 2 and
  the released config) are depth, width, heads of 16, 1216, 16; 18, 1376, 18; 20, 1536, 20; 22, 1632, 22; 24, 1776, 24; and 27, 2304, 32,
  where the block on top is attention as well.
  """
  delta, full = KDA(heads=heads, head_dim=128), Attention(heads=heads, head_dim=128, rotary_fraction=0.0)
  return LM(vocab=vocab, width=width, depth=depth, pattern=(delta, delta, delta, full), channel=GatedMLP(4 * width), norm=RMSNorm(1e-5))


def jamba(depth: int, width: int, vocab: int = 65536) -> LM:
  """Jamba's pattern, dense, in the proportions of Jamba-v0.1 (32 layers of 4096): heads of 128, four to a key/value head, an MLP of 3.5 widths."""
  if width % 512:
    raise ValueError(f'jamba: width={width} is not a multiple of 512, four heads of 128 that share a key/value head')
  mamba, full = Mamba1(), Attention(heads=width // 128, head_dim=128, kv_heads=width // 512, rotary_fraction=0.0)
  return LM(vocab=vocab, width=width, depth=depth, pattern=(mamba,) * 4 + (full,) + (mamba,) * 3, channel=GatedMLP(width * 7 // 2), norm=RMSNorm())
