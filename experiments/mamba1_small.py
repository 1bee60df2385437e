"""Mamba at the quick start's size, data and budget.  Architecture: arXiv 2312.00752.

python -m ssmlab.launch experiments/mamba1_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.embedding import Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.mamba1 import Mamba1
from ssmlab.models import LM


def config():
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(Mamba1(),), depth=9, norm=RMSNorm(1e-5), head=Head(tied=True)))
