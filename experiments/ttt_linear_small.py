"""TTT-Linear at the quick start's size, data and budget.  Architecture: arXiv 2407.04620.

python -m ssmlab.launch experiments/ttt_linear_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.ttt_linear import TTTLinear
from ssmlab.models import LM


def config():
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(TTTLinear(heads=5, head_dim=32),), depth=4, channel=GatedMLP(hidden=480), remat='none'))
