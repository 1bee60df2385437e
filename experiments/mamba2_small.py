"""Mamba-2 at the quick start's size, data and budget.  Architecture: arXiv 2405.21060.

python -m ssmlab.launch experiments/mamba2_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.embedding import Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.mamba2 import Mamba2
from ssmlab.models import LM


def config():
  mixer = Mamba2(head_dim=32, state=64)
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(mixer,), depth=9, norm=RMSNorm(1e-5), head=Head(tied=True), remat='none'))
