"""xLSTM at its published size.  arXiv 2503.13427, table 1 of the model; weights huggingface.co/NX-AI/xLSTM-7b.

The vocabulary is GPT-NeoX-20B's, padded to a multiple of 64.  The start is the authors' (small init; the gates' weights zero) but for the
MLP, whose maps here begin as every MLP of this lab does.
"""

import math

from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.mlstm import MLSTM
from ssmlab.models.lm import LM, Block

# Blocks, width, heads, width of the MLP (8/3 of the width in multiples of 64).
SIZES = {'7B': (32, 4096, 8, 10944)}


def xlstm(size: str) -> LM:
  """xLSTM: '7B'."""
  if size not in SIZES:
    raise ValueError(f'xlstm: size {size!r} is not one of {", ".join(SIZES)}')
  depth, width, heads, hidden = SIZES[size]
  mixer = MLSTM(heads, head_dim=width // heads // 2, value_dim=width // heads)
  start = math.sqrt(2 / (5 * width))
  return LM(vocab=50304, width=width, depth=depth, pattern=(Block(mixer, GatedMLP(hidden)),), norm=RMSNorm(1e-6),
            embedding=Embedding(size=start), head=Head(size=start, softcap=30.0))
