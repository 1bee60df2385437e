"""RWKV-5 (Eagle), 0.4B parameters, 1.12T tokens of RWKV World v2.  Paper: Eagle and Finch, arXiv 2404.05892.

python -m ssmlab.launch experiments/rwkv5_0b4.py --workdir DIR

Data, tokenizer, recipe and what the paper leaves open are those of experiments/rwkv6_1b6.py, at the paper's higher rate for this size.
"""

import dataclasses

from experiments.rwkv6_1b6 import config as base
from ssmlab.models.presets.rwkv import rwkv5


def config():
  run = base()
  return dataclasses.replace(run, model=dataclasses.replace(rwkv5('0.4B'), activations='bfloat16'),
                             optim=dataclasses.replace(run.optim, peak_lr=4e-4, end_ratio=1e-5 / 4e-4))
