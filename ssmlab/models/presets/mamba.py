"""Mamba, Mamba-2 and Mamba-3 at the published sizes.  arXiv 2312.00752, 2405.21060 and 2603.15569; Codestral:
huggingface.co/mistralai/Mamba-Codestral-7B-v0.1.

Mamba and Mamba-2: layers and widths are those of the released checkpoints (state-spaces/mamba-130m and so on).  Their vocabulary,
GPT-NeoX-20B's 50277 tokens, is padded to a multiple of 8 for Mamba and of 16 for Mamba-2.

Mamba-3 (SISO): widths of the MLPs between are the paper's (appendix C), the vocabulary is Llama 3.1's; layers and widths are those of the
recipe it points to (Mamba-2's table 9).  No weights are released: that, and one table for both ends, is inferred from the sizes' names,
with which the counts agree to 4 %.
"""

from ssmlab.layers.channel import ChannelMixer, GatedMLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers import Mixer
from ssmlab.mixers.mamba1 import Mamba1
from ssmlab.mixers.mamba2 import Mamba2
from ssmlab.mixers.mamba3 import Mamba3
from ssmlab.models.lm import LM
from ssmlab.models.presets import sizes_of

# Layers and width.
SIZES_1 = {'130M': (24, 768), '370M': (48, 1024), '790M': (48, 1536), '1.4B': (48, 2048), '2.8B': (64, 2560)}
SIZES_2 = {'130M': (24, 768), '370M': (48, 1024), '780M': (48, 1536), '1.3B': (48, 2048), '2.7B': (64, 2560)}

# Layers, width, width of the MLP.
SIZES_3 = {'180M': (12, 768, 1500), '440M': (24, 1024, 2048), '880M': (24, 1536, 3072), '1.5B': (24, 2048, 4096)}


def mamba1(size: str) -> LM:
  """Mamba: '130M', '370M', '790M', '1.4B' or '2.8B'."""
  return _lm(50280, *sizes_of('mamba1', SIZES_1, size), Mamba1())


def mamba2(size: str) -> LM:
  """Mamba-2: '130M', '370M', '780M', '1.3B', '2.7B' or 'codestral-7B'."""
  if size == 'codestral-7B':
    return _lm(32768, 64, 4096, Mamba2(groups=8), tied=False)
  return _lm(50288, *sizes_of('mamba2', SIZES_2, size, 'codestral-7B'), Mamba2())


def mamba3(size: str) -> LM:
  """Mamba-3 (SISO): '180M', '440M', '880M' or '1.5B'."""
  depth, width, hidden = sizes_of('mamba3', SIZES_3, size)
  return _lm(128256, depth, width, Mamba3(head_dim=64, state=128), channel=GatedMLP(hidden))


def _lm(vocab: int, depth: int, width: int, mixer: Mixer, tied: bool = True, channel: ChannelMixer | None = None) -> LM:
  return LM(vocab=vocab, width=width, depth=depth, pattern=(mixer,), channel=channel, norm=RMSNorm(1e-5), embedding=Embedding('normal', 0.02),
            head=Head(tied=tied))
