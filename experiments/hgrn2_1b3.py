"""HGRN2, 1.3B parameters, 100B tokens of FineWeb-Edu.  Architecture: arXiv 2404.07904; recipe: Gated Delta Networks, arXiv 2412.06464, section 4.

Published (there, table 3): WikiText perplexity 19.10, LAMBADA perplexity 17.69, average of 8 tasks 51.79.

python -m ssmlab.launch experiments/hgrn2_1b3.py --workdir DIR

That paper trains all its models alike: data, tokenizer, recipe and what it leaves open are those of experiments/gated_deltanet_1b3.py.  It does
not print HGRN2's layers and width; these are of the released fla-hub/hgrn2-1.3B-100B.
"""

import dataclasses

from experiments.gated_deltanet_1b3 import config as base
from ssmlab.models.presets.linear import hgrn2


def config():
  return dataclasses.replace(base(), model=dataclasses.replace(hgrn2('1.3B'), activations='bfloat16'))
