"""Hyena of order 2, 355M parameters, 15B tokens of the Pile.  Paper: Hyena Hierarchy, arXiv 2302.10866, table 4.4 and appendix A.3.

Published: perplexity 9.2 after 15B tokens (11.3 after 5B, 9.8 after 10B), where GPT of 355M has 9.1.  Data, tokenizer and what differs are those
of experiments/hyena_pile_153m.py.  Not run here.

python -m ssmlab.launch experiments/hyena_pile_355m.py --workdir DIR
"""

import dataclasses

from experiments.hyena_pile_153m import config as base
from ssmlab.models.presets.hyena import hyena


def config():
  small = base()
  return dataclasses.replace(small, model=dataclasses.replace(hyena('355M'), activations='bfloat16'), optim=dataclasses.replace(small.optim, peak_lr=4e-4))
