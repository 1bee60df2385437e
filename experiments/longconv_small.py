"""Plain long convolutions at the quick start's size, data and budget.  Architecture: arXiv 2302.06646.

The paper's recipes are of classification (Long Range Arena, mostly with filters that see both ways), which no experiment here covers.

python -m ssmlab.launch experiments/longconv_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Head
from ssmlab.layers.filters import ExplicitFilter
from ssmlab.mixers.longconv import LongConv
from ssmlab.models import LM


def config():
  mixer = LongConv(ExplicitFilter(l_max=512, threshold=0.001))
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(mixer,), depth=6, channel=GatedMLP(224), head=Head(tied=True), remat='none'))
