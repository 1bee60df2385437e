"""HyenaDNA, 6.6M parameters, the human genome in sequences of a million nucleotides.  Paper: HyenaDNA, arXiv 2306.15794.

Published: up to 160 times as fast to train as a Transformer at this length.  Data, tokenizer and optimiser are those of
experiments/hyenadna_tiny_1k.py; model: config.json of huggingface.co/LongSafari/hyenadna-large-1m-seqlen-hf.  Not run here.

python -m ssmlab.launch experiments/hyenadna_large_1m.py --workdir DIR

The authors double the length in stages on the way here and keep mixers and MLPs out of memory (here every block is recomputed).  Stages,
steps and batch of this size are not established: 10,000 steps of 8 sequences, all of full length, are chosen.
"""

import dataclasses

from experiments.hyenadna_tiny_1k import config as base
from ssmlab.models.presets.hyena import hyenadna

STEPS = 10_000


def config():
  small = base()
  return dataclasses.replace(
      small, model=dataclasses.replace(hyenadna('large-1m'), activations='bfloat16'), data=dataclasses.replace(small.data, length=1_000_000, batch_size=8),
      optim=dataclasses.replace(small.optim, warmup_steps=STEPS // 100), train=dataclasses.replace(small.train, steps=STEPS))
