"""S4D at the quick start's size, data and budget.  Architecture: arXiv 2206.11893.

The paper's recipes classify long sequences (Long Range Arena and speech): no task of this lab yet.

python -m ssmlab.launch experiments/s4d_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.s4d import S4D
from ssmlab.models import LM


def config():
  return override(base(), 'model', LM(vocab=256, width=400, pattern=(S4D(state=16),), depth=4, norm=LayerNorm(), remat='none'))
