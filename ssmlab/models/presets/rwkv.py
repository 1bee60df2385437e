"""RWKV at the published sizes.  RWKV-4: arXiv 2305.13048, table 2; RWKV-5 and 6: arXiv 2404.05892; RWKV-7: arXiv 2503.14456.

Layers, widths and first values are those of the released checkpoints and of BlinkDL/RWKV-LM's code.  Embeddings of 4 start at the run's
learning rate, those of 5 to 7 at 1e-4.
"""

import math

from ssmlab.layers.channel import RWKV6ChannelMix, RWKV7ChannelMix, RWKVChannelMix
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.rwkv4 import RWKV4
from ssmlab.mixers.rwkv5 import RWKV5
from ssmlab.mixers.rwkv6 import RWKV6
from ssmlab.mixers.rwkv7 import RWKV7
from ssmlab.models.lm import LM, Block
from ssmlab.models.presets import sizes_of

PILE, PILE_PADDED, WORLD = 50277, 50304, 65536                    # ids: GPT-NeoX-20B's tokenizer, the same rounded up, RWKV World's

# Layers and width; of RWKV-4 also the first learning rate, at which its embedding starts.
SIZES_4 = {'169M': (12, 768, 6e-4), '430M': (24, 1024, 4e-4), '1.5B': (24, 2048, 3e-4), '3B': (32, 2560, 1.5e-4), '7B': (32, 4096, 1.5e-4),
           '14B': (40, 5120, 1e-4)}
SIZES_5 = {'0.4B': (24, 1024), '1.5B': (24, 2048), '3B': (32, 2560), '7B': (32, 4096)}
SIZES_6 = {'1.6B': (24, 2048), '3B': (32, 2560)}

# Layers, width and the ranks (w and a, v, g) of the checkpoints, which an earlier rule of the code gave: 1.8, 1.3 times sqrt(width) and
# 0.6 * width^0.8 in multiples of 32.  RWKV7's default is the present rule, with other ranks.  World's 0.4B departs from either in g.
SIZES_7 = {'0.1B': (12, 768, (64, 32, 128)), '0.4B': (24, 1024, (64, 32, 128)), '1.5B': (24, 2048, (96, 64, 256)), '2.9B': (32, 2560, (96, 64, 320))}
SIZES_7_PILE = {'168M': (12, 768, (64, 32, 128)), '421M': (24, 1024, (64, 32, 160)), '1.47B': (24, 2048, (96, 64, 256))}


def rwkv4(size: str) -> LM:
  """RWKV-4 Pile: '169M', '430M', '1.5B', '3B', '7B' or '14B'."""
  depth, width, rate = sizes_of('rwkv4', SIZES_4, size)
  return _lm(PILE, depth, width, Block(RWKV4(), RWKVChannelMix(4 * width, key_start=2.0)), start=rate)


def rwkv5(size: str) -> LM:
  """RWKV-5 World (Eagle): '0.4B', '1.5B', '3B' or '7B'."""
  depth, width = sizes_of('rwkv5', SIZES_5, size)
  return _lm(WORLD, depth, width, Block(RWKV5(), RWKVChannelMix(_hidden(width))))


def rwkv6(size: str) -> LM:
  """RWKV-6 World (Finch): '1.6B' or '3B'.  The ranks of the later 7B and 14B are not published."""
  depth, width = sizes_of('rwkv6', SIZES_6, size)
  return _lm(WORLD, depth, width, Block(RWKV6(), RWKV6ChannelMix(_hidden(width))))


def rwkv7(size: str) -> LM:
  """RWKV-7 World-3 (Goose): '0.1B', '0.4B', '1.5B' or '2.9B'."""
  return _rwkv7(WORLD, *sizes_of('rwkv7', SIZES_7, size))


def rwkv7_pile(size: str) -> LM:
  """RWKV-7 Pile: '168M', '421M' or '1.47B'."""
  return _rwkv7(PILE_PADDED, *sizes_of('rwkv7_pile', SIZES_7_PILE, size))


def _rwkv7(vocab: int, depth: int, width: int, ranks: tuple[int, int, int]) -> LM:
  mixer = RWKV7(rank_w=ranks[0], rank_a=ranks[0], rank_v=ranks[1], rank_g=ranks[2])
  return _lm(vocab, depth, width, Block(mixer, RWKV7ChannelMix(4 * width)))


def _lm(vocab: int, depth: int, width: int, block: Block, start: float = 1e-4) -> LM:
  return LM(vocab=vocab, width=width, depth=depth, pattern=(block,), norm=LayerNorm(), embedding=Embedding('uniform', start, norm=LayerNorm()),
            head=Head(start='orthogonal', size=0.5 * math.sqrt(vocab / width)))


def _hidden(width: int) -> int:
  """3.5 * width rounded down to a multiple of 32."""
  return int(3.5 * width) // 32 * 32
