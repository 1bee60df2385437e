"""DeltaNet, 1.3B parameters, 100B tokens of FineWeb-Edu.  Architecture: arXiv 2406.06484; recipe: Gated Delta Networks, arXiv 2412.06464, section 4.

Published (there, table 3): WikiText perplexity 17.71, LAMBADA perplexity 16.88, average of 8 tasks 52.14.

python -m ssmlab.launch experiments/deltanet_1b3.py --workdir DIR

That paper trains all its models alike: data, tokenizer, recipe and what it leaves open are those of experiments/gated_deltanet_1b3.py.  It does
not print DeltaNet's layers and width; these are of the released fla-hub/delta_net-1.3B-100B.
"""

import dataclasses

from experiments.gated_deltanet_1b3 import config as base
from ssmlab.models.presets.delta import deltanet


def config():
  return dataclasses.replace(base(), model=dataclasses.replace(deltanet('1.3B'), activations='bfloat16'))
