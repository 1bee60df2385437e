"""RetNet at the quick start's size, data and budget.  Architecture: arXiv 2307.08621.

Measured 2026-11-22, 2 CPU cores, Python 3.11.7, seed 0: 2.298 validation bits per byte after 1.02M bytes.

python -m ssmlab.launch experiments/quickstart_retnet.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.mixers.retention import Retention
from ssmlab.models import LM


def config():
  width = 160
  return override(base(), 'model', LM(
      vocab=256, width=width, pattern=(Retention(heads=5, head_dim=32, value_dim=64),), depth=4, channel=GatedMLP(hidden=326, activation='gelu', uniform=True),
      embedding=Embedding(size=width ** -0.5), head=Head(size=width ** -0.5), remat='none'))
