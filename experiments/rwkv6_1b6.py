"""RWKV-6 (Finch), 1.6B parameters, 1.12T tokens of RWKV World v2.  Paper: Eagle and Finch, arXiv 2404.05892.

Published: average of 9 English tasks 62.9 (Mamba 1.4B 63.1, Pythia 1.4B 59.9).  The corpus as text in data/world, the vocabulary file
rwkv_vocab_v20230424.txt in data.

python -m ssmlab.launch experiments/rwkv6_1b6.py --workdir DIR

From the paper: rate, cosine, 10 steps of warm-up (theirs from a fifth of the peak, ours from a tenth), betas, decay of matrices and
embeddings, length, tokens.  Not published, and ours: a million tokens per step and the end of the cosine, 1e-5.  eps 1e-18 and the
clipping are the author code's.
"""

import dataclasses

from ssmlab.data import Data, RWKVWorld, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.rwkv import rwkv6
from ssmlab.tasks import NextToken
from ssmlab.train import AdamW, Experiment, Train

LENGTH, ROWS, TOKENS = 4096, 256, 1_120_000_000_000


def config():
  return Experiment(
      model=dataclasses.replace(rwkv6('1.6B'), activations='bfloat16'),
      data=Data(Text('data/world', valid_share=0.0005, test_share=0.0005), RWKVWorld('data/rwkv_vocab_v20230424.txt'), length=LENGTH, batch_size=ROWS),
      task=NextToken(max_logit=1e-4),
      optim=AdamW(peak_lr=3e-4, warmup_steps=10, decay='cosine', end_ratio=1e-5 / 3e-4, b1=0.9, b2=0.99, eps=1e-18, weight_decay=1e-3, clip=1.0),
      train=Train(steps=TOKENS // (LENGTH * ROWS), log_every=100, checkpoint_every=2000),
      evals=(('valid', HeldOut(every=10000, max_tokens=2**20)),))
