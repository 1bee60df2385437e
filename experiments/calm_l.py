"""CALM-L, 735M parameters and an autoencoder of 75M, 4 tokens at a time.  Paper: CALM, arXiv 2510.27688, table 1.

Published: BrierLM 6.58 on WikiText-103's test split; 7.7e20 FLOPs of training, 4.6e8 per generated token at temperature 1.
Data, recipe and first stage: experiments/calm_m.py.

python -m ssmlab.launch experiments/calm_l.py --workdir DIR
"""

import dataclasses

from experiments.calm_m import config as base
from ssmlab.models.presets.calm import calm


def config():
  return dataclasses.replace(base(), model=dataclasses.replace(calm('L'), activations='bfloat16'))
