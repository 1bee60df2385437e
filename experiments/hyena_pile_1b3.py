"""Hyena of order 2, 1.3B parameters, 5B tokens of the Pile.  Paper: Hyena Hierarchy, arXiv 2302.10866, table 4.4 and appendix A.3.

Published: perplexity 10.8 after 5B tokens.  Data, tokenizer and what differs are those of experiments/hyena_pile_153m.py.  Not run here.

python -m ssmlab.launch experiments/hyena_pile_1b3.py --workdir DIR
"""

import dataclasses

from experiments.hyena_pile_153m import config as base
from ssmlab.models.presets.hyena import hyena

STEPS = 10_000


def config():
  small = base()
  return dataclasses.replace(
      small, model=dataclasses.replace(hyena('1.3B'), activations='bfloat16'), train=dataclasses.replace(small.train, steps=STEPS),
      optim=dataclasses.replace(small.optim, peak_lr=2.2e-4, warmup_steps=STEPS // 100))
