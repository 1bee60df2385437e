"""Three Gated DeltaNet to one gated attention (Qwen3-Next, Qwen3.5) at the quick start's size, data and budget.  Architecture: arXiv 2412.06464.

python -m ssmlab.launch experiments/hybrid_gated_deltanet_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.gated_deltanet import GatedDeltaNet
from ssmlab.models import LM


def config():
  norm = RMSNorm(zero_centred=True)
  delta = GatedDeltaNet(heads=4, head_dim=30)
  full = Attention(heads=5, head_dim=32, rotary_fraction=0.25, qk_norm=norm, gate=True)
  return override(base(), 'model', LM(
      vocab=256, width=160, pattern=(delta, delta, delta, full), depth=4, channel=GatedMLP(hidden=442), norm=norm, remat='none'))
