"""RetNet at the published sizes.  arXiv 2307.08621, table 2; author code microsoft/torchscale, examples/fairseq/models/retnet.py.

Layers, widths and heads are the paper's, and those of the code's retnet_xl, retnet_3b and retnet_7b.  The inner sizes are the code's, whose
feed-forward is gated (the paper's first one was not, with both inner sizes at twice the width): 12 width^2 parameters a layer either way, to 2 %.
Neither says the vocabulary.  With GPT-2's 50257 ids and one table for both ends the counts are the names; other ids: the argument.
"""

import math

from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.retention import Retention
from ssmlab.models.lm import LM
from ssmlab.models.presets import sizes_of

# Layers, width, heads, and the inner size of both retention and MLP.
SIZES = {'1.3B': (24, 2048, 8, 3456), '2.7B': (32, 2560, 10, 4280), '6.7B': (32, 4096, 16, 6912)}


def retnet(size: str, vocab: int = 50257) -> LM:
  """RetNet: '1.3B', '2.7B' or '6.7B'."""
  depth, width, heads, inner = sizes_of('retnet', SIZES, size)
  return LM(vocab=vocab, width=width, depth=depth, pattern=(Retention(heads=heads, head_dim=width // heads, value_dim=inner // heads),),
            channel=GatedMLP(inner, uniform=True), norm=RMSNorm(), embedding=Embedding(size=width ** -0.5, scale=math.sqrt(width)), head=Head(tied=True))
