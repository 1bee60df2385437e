"""sLSTM at the quick start's size, data and budget, gated MLPs of the authors' width 4/3 between.  Architecture: arXiv 2405.04517.

python -m ssmlab.launch experiments/slstm_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.slstm import SLSTM
from ssmlab.models import LM


def config():
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(SLSTM(heads=4),), depth=9, channel=GatedMLP(hidden=214, activation='gelu'), remat='none'))
