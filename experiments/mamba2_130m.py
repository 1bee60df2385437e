"""Mamba-2, 130M parameters, 300B tokens of the Pile.  Paper: Transformers are SSMs, arXiv 2405.21060, table of zero-shot evaluations.

Published: Pile perplexity 10.48, LAMBADA perplexity 16.86 and accuracy 43.9, HellaSwag 35.3, PIQA 64.9, ARC-e 47.4, ARC-c 24.2,
WinoGrande 52.1.  Data, tokenizer and recipe are those of experiments/mamba1_130m.py, as in the paper.

python -m ssmlab.launch experiments/mamba2_130m.py --workdir DIR
"""

import dataclasses

from experiments.mamba1_130m import config as base
from ssmlab.models.presets.mamba import mamba2


def config():
  return dataclasses.replace(base(), model=dataclasses.replace(mamba2('130M'), activations='bfloat16'))
