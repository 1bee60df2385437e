"""minLSTM at the quick start's size, data and budget.  Architecture: arXiv 2410.01201.

python -m ssmlab.launch experiments/minlstm_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.minlstm import MinLSTM
from ssmlab.models import LM


def config():
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(MinLSTM(expand=1.5, conv_width=4),), depth=4, channel=GatedMLP(hidden=380), remat='none'))
