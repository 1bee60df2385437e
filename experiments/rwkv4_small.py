"""RWKV-4 at the quick start's size, data and budget.  Architecture: arXiv 2305.13048.

python -m ssmlab.launch experiments/rwkv4_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import RWKVChannelMix
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.rwkv4 import RWKV4
from ssmlab.models import LM


def config():
  return override(base(), 'model', LM(
      vocab=256, width=168, pattern=(RWKV4(),), depth=4, channel=RWKVChannelMix(hidden=672, key_start=2.0), norm=LayerNorm(),
      embedding=Embedding('uniform', 1e-4, norm=LayerNorm()), head=Head(start='orthogonal', size=0.5), remat='none'))
