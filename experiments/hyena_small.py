"""Hyena of order 2 at the quick start's size, data and budget.  Architecture: arXiv 2302.10866.

python -m ssmlab.launch experiments/hyena_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import MLP
from ssmlab.layers.embedding import Head
from ssmlab.layers.filters import ImplicitFilter
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.hyena import Hyena
from ssmlab.models import LM


def config():
  mixer = Hyena(ImplicitFilter(l_max=512, emb_dim=17, width=32))
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(mixer,), depth=6, channel=MLP(400, 'gelu_tanh', start=0.02), norm=LayerNorm(),
                                      head=Head(tied=True), remat='none'))
