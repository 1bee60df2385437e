"""H3 with attention in one of four layers, at the quick start's size, data and budget.  Architecture: arXiv 2212.14052.

python -m ssmlab.launch experiments/h3_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import MLP
from ssmlab.layers.embedding import Head
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.h3 import H3
from ssmlab.models import LM


def config():
  recurrent, attention = H3(state=32), Attention(heads=5, head_dim=32, bias=True, output_bias=True, rotary_fraction=0.0, start=0.02)
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(recurrent, recurrent, attention, recurrent), depth=4,
                                      channel=MLP(768, 'gelu_tanh', start=0.02), norm=LayerNorm(), head=Head(tied=True), remat='none'))
