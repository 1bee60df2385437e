"""CALM-S, 201M parameters and an autoencoder of 75M, 4 tokens at a time.  Paper: CALM, arXiv 2510.27688, section 7.

Published: BrierLM 4.70 after 50k steps, in the ablations of section 7, which is what this size is for.
Data, recipe and first stage: experiments/calm_m.py.

python -m ssmlab.launch experiments/calm_s.py --workdir DIR
"""

import dataclasses

from experiments.calm_m import config as base
from ssmlab.core.config import override
from ssmlab.models.presets.calm import calm


def config():
  return override(dataclasses.replace(base(), model=dataclasses.replace(calm('S'), activations='bfloat16')), 'train.steps', 50_000)
