"""Jamba's hybrid, dense, at the quick start's size, data and budget: one attention without positions among seven Mamba.  arXiv 2403.19887.

python -m ssmlab.launch experiments/hybrid_jamba_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.mamba1 import Mamba1
from ssmlab.models import LM


def config():
  mamba, full = Mamba1(), Attention(heads=4, head_dim=32, kv_heads=1, rotary_fraction=0.0)
  return override(base(), 'model', LM(
      vocab=256, width=128, pattern=(mamba,) * 4 + (full,) + (mamba,) * 3, depth=8, channel=GatedMLP(hidden=200)))
