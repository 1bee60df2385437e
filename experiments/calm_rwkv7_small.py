"""CALM with an RWKV-7 backbone in the place of calm_lm_small's Transformer.  CALM: arXiv 2510.27688; RWKV-7: arXiv 2503.14456.

python -m ssmlab.launch experiments/calm_autoencoder_small.py --workdir runs/calm_autoencoder_small
python -m ssmlab.launch experiments/calm_rwkv7_small.py
"""

from experiments.calm_lm_small import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import RWKV7ChannelMix
from ssmlab.mixers.rwkv7 import RWKV7
from ssmlab.models import Block


def config():
  return override(base(), 'model.pattern', (Block(RWKV7(head_dim=36), RWKV7ChannelMix(hidden=576)),))
