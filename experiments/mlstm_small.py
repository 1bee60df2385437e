"""mLSTM (the layer of xLSTM 7B) at the quick start's size, data and budget.  Architecture: arXiv 2503.13427.

python -m ssmlab.launch experiments/mlstm_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Head
from ssmlab.mixers.mlstm import MLSTM
from ssmlab.models import LM


def config():
  mixer = MLSTM(heads=5, head_dim=16, value_dim=32)
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(mixer,), depth=4, channel=GatedMLP(hidden=540), head=Head(softcap=30.0), remat='none'))
