"""Kimi delta attention (KDA) at the quick start's size, data and budget.  Architecture: arXiv 2510.26692.

python -m ssmlab.launch experiments/kda_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.kda import KDA
from ssmlab.models import LM


def config():
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(KDA(heads=5, head_dim=32),), depth=4, channel=GatedMLP(hidden=522), remat='none'))
