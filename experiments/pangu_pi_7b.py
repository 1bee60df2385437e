"""PanGu-pi, 6.7B parameters, 1.6T tokens of Chinese and English.  Paper: arXiv 2312.17276, section 5.1.

Published (table 5): average 56.90 over its benchmarks (C-Eval 59.86, MMLU 61.91, PIQA 77.15); 43.0 ms a token where the Llama of 32 layers
takes 47.6 on an Ascend 910A.

python -m ssmlab.launch experiments/pangu_pi_7b.py --workdir DIR

Data, tokenizer and recipe, and what of them is chosen here: experiments/pangu_pi_1b.py.
"""

import dataclasses

from experiments.pangu_pi_1b import config as base
from ssmlab.models.presets.pangu import pangu_pi


def config():
  return dataclasses.replace(base(), model=dataclasses.replace(pangu_pi('7B'), activations='bfloat16'))
