"""PanGu-pi in 9 layers, 1.07M parameters, bytes of English novels, beside the Transformer in 10.  Paper: arXiv 2312.17276.

The paper's two claims at a size that a CPU trains: the tokens of deep layers stay more diverse than the plain Transformer's, and with a
layer less per ten the loss is the same and inference faster.  Everything else is experiments/transformer_novels.py's.  Seeds 0, 1, 2;
2026-11-23, one CPU core beside another run; loss on 262,144 bytes of the held-out novels, in nats:

                       loss                   mean and deviation    components with 80% of the variance, last block   decoding
  transformer_novels   1.826, 1.810, 1.800    1.812, 0.013          13, 13, 13                                        1
  pangu_pi_novels      1.829, 1.833, 1.820    1.827, 0.007          12, 12, 12                                        1.14

So here the loss is 0.015 higher, decoding 14% faster with 8% fewer parameters, and the diversity no larger: in ten layers of width 96 the plain
Transformer's tokens do not collapse, either (ssmlab/eval/diversity.png; ssmlab eval RUNS --suite diversity, ssmlab bench inference).

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
