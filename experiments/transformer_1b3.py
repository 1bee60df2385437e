"""Transformer++ (Llama's architecture), 1.3B parameters, 100B tokens of SlimPajama.  Paper: Gated Linear Attention, arXiv 2312.06635, section 5.1.

Published (table 2): WikiText perplexity 16.85, LAMBADA perplexity 13.44, average accuracy 50.9.

python -m ssmlab.launch experiments/transformer_1b3.py --workdir DIR

The baseline of that paper, trained as its GLA: data, tokenizer, recipe and what it leaves open are those of experiments/gla_1b3.py.
"""

import dataclasses

from experiments.gla_1b3 import config as base
from ssmlab.models.presets.llama import transformer


def config():
  return dataclasses.replace(base(), model=dataclasses.replace(transformer('1.3B'), activations='bfloat16'))
