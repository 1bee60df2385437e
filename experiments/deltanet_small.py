"""DeltaNet at the quick start's size, data and budget.  Architecture: arXiv 2406.06484.

python -m ssmlab.launch experiments/deltanet_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.deltanet import DeltaNet
from ssmlab.models import LM


def config():
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(DeltaNet(heads=5, head_dim=32),), depth=4, channel=GatedMLP(hidden=566), remat='none'))
