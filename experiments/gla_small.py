"""Gated linear attention (GLA) at the quick start's size, data and budget.  Architecture: arXiv 2312.06635.

python -m ssmlab.launch experiments/gla_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.gla import GLA
from ssmlab.models import LM


def config():
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(GLA(heads=4, head_dim=20, value_dim=40),), depth=4, channel=GatedMLP(hidden=564), remat='none'))
