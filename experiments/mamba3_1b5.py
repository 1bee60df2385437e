"""Mamba-3 (SISO), 1.5B parameters, 100B tokens of FineWeb-Edu.  Paper: Mamba-3, arXiv 2603.15569, section 4.1 and appendix D.

Published (table 3): FineWeb-Edu perplexity 10.35, LAMBADA perplexity 10.9, average accuracy 56.4.  Not run here.  Data, tokenizer and recipe
are those of experiments/mamba3_180m.py; the rate is five times GPT-3's for 1.3B.

python -m ssmlab.launch experiments/mamba3_1b5.py --workdir DIR
"""

import dataclasses

from experiments.mamba3_180m import config as base
from ssmlab.models.presets.mamba import mamba3

RATE = 5 * 2e-4


def config():
  small = base()
  return dataclasses.replace(
      small, model=dataclasses.replace(mamba3('1.5B'), activations='bfloat16'),
      optim=dataclasses.replace(small.optim, peak_lr=RATE, end_ratio=1e-5 / RATE))
