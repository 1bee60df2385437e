"""S5 at the quick start's size, data and budget.  Architecture: arXiv 2208.04933.

The paper's recipes classify long sequences (Long Range Arena and speech): no task of this lab yet.

python -m ssmlab.launch experiments/s5_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.s5 import S5
from ssmlab.models import LM


def config():
  return override(base(), 'model', LM(vocab=256, width=256, pattern=(S5(state=256, blocks=8),), depth=7, norm=LayerNorm(), remat='none'))
