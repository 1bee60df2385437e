"""Linear attention, 1.3B parameters, 100B tokens of SlimPajama: a baseline.  Architecture: arXiv 2006.16236; recipe: arXiv 2312.06635, section 5.1.

No such run is published.  It differs from experiments/transformer_1b3.py in the mixer alone, and from experiments/gla_1b3.py in mixer and
heads: their data, tokenizer and recipe.

python -m ssmlab.launch experiments/linear_attention_1b3.py --workdir DIR
"""

import dataclasses

from experiments.gla_1b3 import config as base
from ssmlab.models.presets.linear import linear_attention


def config():
  return dataclasses.replace(base(), model=dataclasses.replace(linear_attention('1.3B'), activations='bfloat16'))
