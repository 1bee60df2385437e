"""Gated DeltaNet at the quick start's size, data and budget.  Architecture: arXiv 2412.06464.

python -m ssmlab.launch experiments/gated_deltanet_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.gated_deltanet import GatedDeltaNet
from ssmlab.models import LM


def config():
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(GatedDeltaNet(heads=4, head_dim=30),), depth=4, channel=GatedMLP(hidden=458), remat='none'))
