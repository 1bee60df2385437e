"""RWKV-5 (Eagle), 1.5B parameters, 1.12T tokens of RWKV World v2.  Paper: Eagle and Finch, arXiv 2404.05892.

Published: average of 9 English tasks 62.4 (RWKV-4 1.5B 59.2).

python -m ssmlab.launch experiments/rwkv5_1b5.py --workdir DIR

Data, tokenizer, recipe and what the paper leaves open are those of experiments/rwkv6_1b6.py: the paper gives both the same rate.
"""

import dataclasses

from experiments.rwkv6_1b6 import config as base
from ssmlab.models.presets.rwkv import rwkv5


def config():
  return dataclasses.replace(base(), model=dataclasses.replace(rwkv5('1.5B'), activations='bfloat16'))
