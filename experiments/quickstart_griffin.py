"""Griffin (two RG-LRU blocks, one of local attention) at the quick start's size, data and budget.  Architecture: arXiv 2402.19427.

Measured 2026-11-22, 2 CPU cores, Python 3.11.7, seed 0: 1.864 validation bits per byte after 1.02M bytes.

python -m ssmlab.launch experiments/quickstart_griffin.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.rglru import RGLRU
from ssmlab.models import LM


def config():
  recurrent = RGLRU(inner=192, heads=6)
  local = Attention(heads=5, head_dim=32, kv_heads=1, window=64, rotary_fraction=0.5)
  return override(base(), 'model', LM(
      vocab=256, width=160, pattern=(recurrent, recurrent, local), depth=4, channel=GatedMLP(hidden=554, activation='gelu_tanh'),
      norm=RMSNorm(zero_centred=True), remat='none'))
