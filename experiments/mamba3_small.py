"""Mamba-3 (SISO) at the quick start's size, data and budget.  Architecture: arXiv 2603.15569.

python -m ssmlab.launch experiments/mamba3_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.mamba3 import Mamba3
from ssmlab.models import LM


def config():
  block = Mamba3(head_dim=32, state=64)
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(block,), depth=4, channel=GatedMLP(hidden=352), norm=RMSNorm(1e-5), remat='none'))
