"""Linear attention at the quick start's size, data and budget.  Architecture: arXiv 2006.16236.

python -m ssmlab.launch experiments/linear_attention_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.linear_attention import LinearAttention
from ssmlab.models import LM


def config():
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(LinearAttention(heads=5, head_dim=32),), depth=4, channel=GatedMLP(hidden=570), remat='none'))
