"""TTT-Linear at the published sizes.  arXiv 2407.04620; author code test-time-training/ttt-lm-jax, ttt/models/model.py (125m-TTT to 1b-TTT).

The block with the Mamba backbone (the authors' ttt_linear): the gate and the convolutions of q and k are in the mixer.  Their convolution
before each block (pre_conv, 6 parameters per channel and layer) is not in the mixer, hence not here.  The sizes' names are GPT-3's: with
one table of Llama 2's 32,000 ids for both ends '125M' counts 110M.  The MLP's maps begin as every MLP of this lab does, not at 0.02.
"""

from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.ttt_linear import TTTLinear
from ssmlab.models.lm import LM
from ssmlab.models.presets import sizes_of

# Layers, width, heads, width of the MLP.
SIZES = {'125M': (12, 768, 12, 2048), '350M': (24, 1024, 16, 2736), '760M': (24, 1536, 16, 4096), '1.3B': (24, 2048, 32, 5504)}


def ttt_linear(size: str) -> LM:
  """TTT-Linear: '125M', '350M', '760M' or '1.3B'."""
  depth, width, heads, hidden = sizes_of('ttt_linear', SIZES, size)
  return LM(vocab=32000, width=width, depth=depth, pattern=(TTTLinear(heads, head_dim=width // heads),), channel=GatedMLP(hidden),
            norm=RMSNorm(1e-6), embedding=Embedding('normal', 0.02), head=Head(tied=True))
