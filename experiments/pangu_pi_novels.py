"""PanGu-pi in 9 layers, 1.07M parameters, bytes of English novels, beside the Transformer in 10.  Paper: arXiv 2312.17276.

The paper's two claims at a size that a CPU trains: the tokens of deep layers stay more diverse than the plain Transformer's, and with a
layer less per ten the loss is the same and inference faster.  Everything else is experiments/transformer_novels.py's.

python -m ssmlab.launch experiments/pangu_pi_novels.py --sweep
"""

import dataclasses

from experiments.transformer_novels import config as base
from experiments.transformer_novels import sweep  # noqa: F401  three seeds
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.series_activation import SeriesActivation
from ssmlab.layers.shortcut import Bottleneck
from ssmlab.mixers.augmented import Augmented


def config():
  plain = base()
  model = dataclasses.replace(plain.model, pattern=(Augmented(plain.model.pattern[0], (Bottleneck(reduction=16),)),), depth=9,
                              channel=GatedMLP(plain.model.channel.hidden, activation=SeriesActivation(('silu', 'silu'))))
  return dataclasses.replace(plain, model=model)
