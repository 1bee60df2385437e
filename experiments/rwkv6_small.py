"""RWKV-6 (Finch) at the quick start's size, data and budget.  Architecture: arXiv 2404.05892.

python -m ssmlab.launch experiments/rwkv6_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import RWKV6ChannelMix
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.rwkv6 import RWKV6
from ssmlab.models import LM


def config():
  return override(base(), 'model', LM(
      vocab=256, width=160, pattern=(RWKV6(head_dim=32, rank_mix=8, rank_decay=16),), depth=4, channel=RWKV6ChannelMix(hidden=560), norm=LayerNorm(),
      embedding=Embedding('uniform', 1e-4, norm=LayerNorm()), head=Head(start='orthogonal', size=0.5), remat='none'))
