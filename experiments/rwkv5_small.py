"""RWKV-5 (Eagle) at the quick start's size, data and budget.  Architecture: arXiv 2404.05892.

python -m ssmlab.launch experiments/rwkv5_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import RWKVChannelMix
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.rwkv5 import RWKV5
from ssmlab.models import LM


def config():
  return override(base(), 'model', LM(
      vocab=256, width=160, pattern=(RWKV5(head_dim=32),), depth=4, channel=RWKVChannelMix(hidden=608), norm=LayerNorm(),
      embedding=Embedding('uniform', 1e-4, norm=LayerNorm()), head=Head(start='orthogonal', size=0.5), remat='none'))
