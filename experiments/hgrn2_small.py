"""HGRN2 at the quick start's size, data and budget.  Architecture: arXiv 2404.07904.

python -m ssmlab.launch experiments/hgrn2_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.hgrn2 import HGRN2
from ssmlab.models import LM


def config():
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(HGRN2(heads=5, head_dim=32),), depth=4, channel=GatedMLP(hidden=570), remat='none'))
