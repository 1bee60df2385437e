"""PanGu-pi at its published sizes.  arXiv 2312.17276, table 1 and sections 4 and 5.

There are no published weights and no code.  Layers, widths, heads, vocabulary and the shortcut's reduction are the paper's; the width of
the MLP (Llama's rule, 8/3 of the width rounded up to a multiple of 256), rotary base 10000, RMSNorm's eps and the untied head are not
stated and follow Llama.  The counts that this gives: 7B 6.73e9 (the Llama 2 it is compared with has 6.74e9), 1B 1.03e9.
"""

from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.layers.series_activation import SeriesActivation
from ssmlab.layers.shortcut import Bottleneck
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.augmented import Augmented
from ssmlab.models.lm import LM
from ssmlab.models.presets import sizes_of

# Layers, width, width of the MLP; heads are 128 wide.
SIZES_PANGU = {'1B': (12, 2048, 5632), '7B': (29, 4096, 11008)}


def pangu_pi(size: str) -> LM:
  """PanGu-pi: '1B' or '7B'."""
  depth, width, hidden = sizes_of('pangu_pi', SIZES_PANGU, size)
  return LM(vocab=100883, width=width, depth=depth, pattern=(Augmented(Attention(heads=width // 128, head_dim=128), (Bottleneck(reduction=32),)),),
            channel=GatedMLP(hidden, activation=SeriesActivation(('silu', 'silu'))), norm=RMSNorm(1e-5), embedding=Embedding(), head=Head())
