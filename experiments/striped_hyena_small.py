"""StripedHyena, gated convolution and attention in turns, at the quick start's size, data and budget.  Architecture: togethercomputer/stripedhyena.

python -m ssmlab.launch experiments/striped_hyena_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.striped_hyena import StripedHyena
from ssmlab.models import LM


def config():
  attention = Attention(heads=5, head_dim=32, kv_heads=1, theta=500_000.0)
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(StripedHyena(heads=5), attention), depth=4, channel=GatedMLP(540), norm=RMSNorm(1e-5),
                                      remat='none'))
