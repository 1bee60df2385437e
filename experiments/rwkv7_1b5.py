"""RWKV-7 (Goose), 1.5B parameters, packed text at a context of 8k: rehearsed by `ssmlab plan`, not run here.  Architecture: arXiv 2503.14456.

The corpus as text in data/world, the vocabulary file rwkv_vocab_v20230424.txt in data.

python -m ssmlab.launch plan experiments/rwkv7_1b5.py --topology v5e:16x16 mesh.fsdp=16
python -m ssmlab.launch experiments/rwkv7_1b5.py --workdir DIR mesh.fsdp=16

World-3's sizes and ranks; the corpus, its batches and their lengths are not published in full.  Rate, steps and rows here are chosen: a step of 2M
tokens; betas, eps, warm-up and the logit penalty are those of experiments/rwkv7_pile_170m.py.
"""

import dataclasses

from ssmlab.data import Data, RWKVWorld, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.rwkv import rwkv7
from ssmlab.tasks import NextToken
from ssmlab.train import AdamW, Experiment, Train

LENGTH, ROWS, TOKENS = 8192, 256, 1_000_000_000_000


def config():
  return Experiment(
      model=dataclasses.replace(rwkv7('1.5B'), activations='bfloat16'),
      data=Data(Text('data/world', valid_share=0.0005, test_share=0.0005), RWKVWorld('data/rwkv_vocab_v20230424.txt'), length=LENGTH, batch_size=ROWS),
      task=NextToken(max_logit=1e-4),
      optim=AdamW(peak_lr=4e-4, warmup_steps=10, decay='cosine', end_ratio=0.1, b1=0.9, b2=0.99, eps=1e-18, weight_decay=0.1, clip=1.0),
      train=Train(steps=TOKENS // (LENGTH * ROWS), log_every=20, checkpoint_every=1000),
      evals=(('valid', HeldOut(every=10000, max_tokens=2**20)),))
