"""A hybrid of three Gated DeltaNet to one gated attention at the size of Qwen3.5-0.8B (its text part, 752M parameters), 100B tokens.

Qwen publishes the model and not how it was trained.  Recipe and corpus are those of the Gated DeltaNet paper, arXiv 2412.06464, as in
experiments/gated_deltanet_1b3.py, with Qwen3.5's tokenizer.json as data/qwen3_5_tokenizer.json.  No such run is published.

python -m ssmlab.launch experiments/qwen3_5_0b8.py --workdir DIR
"""

import dataclasses

from experiments.gated_deltanet_1b3 import config as base
from ssmlab.data import HFTokenizer
from ssmlab.models.presets.hybrid import qwen3_5


def config():
  run = base()
  return dataclasses.replace(run, model=dataclasses.replace(qwen3_5('0.8B'), activations='bfloat16'),
                             data=dataclasses.replace(run.data, tokenizer=HFTokenizer('data/qwen3_5_tokenizer.json')))
