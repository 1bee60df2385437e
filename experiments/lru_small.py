"""The linear recurrent unit (LRU) at the quick start's size, data and budget.  Architecture: arXiv 2303.06349.

The paper's recipes classify long sequences (Long Range Arena): no task of this lab yet.

python -m ssmlab.launch experiments/lru_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.lru import LRU
from ssmlab.models import LM


def config():
  return override(base(), 'model', LM(vocab=256, width=256, pattern=(LRU(state=96, r_min=0.5, r_max=0.99),), depth=6, norm=LayerNorm(), remat='none'))
