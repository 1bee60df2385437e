"""Mamba-2, 130M parameters, 300B tokens of the Pile.  Paper: Transformers are SSMs, arXiv 2405.21060, table of zero-shot evaluations.

Data, tokenizer and recipe are those of experiments/mamba1_130m.py.  Not run here; the paper's scores stand in that table.

python -m ssmlab.launch experiments/mamba2_130m.py --workdir DIR
"""

import dataclasses

from experiments.mamba1_130m import config as base
from ssmlab.models.presets.mamba import mamba2


def config():
  return dataclasses.replace(base(), model=dataclasses.replace(mamba2('130M'), activations='bfloat16'))
