"""RWKV-4, 169M parameters, one pass over the Pile (332B tokens).  Paper: RWKV, arXiv 2305.13048, table 3 and appendix G.

Published: PIQA 65.07, HellaSwag 32.26, WinoGrande 50.83, ARC-e 47.47, ARC-c 24.15.  The Pile as text in data/pile, GPT-NeoX-20B's
tokenizer.json as data/20B_tokenizer.json.

python -m ssmlab.launch experiments/rwkv4_169m.py --workdir DIR

The paper counts in mini-epochs of 40320 sequences: 8043 in all, the rate constant for 361, then falling by the same factor each step.
Batches were of 128 or 256 sequences, changed on the way; here all are of 128.  The runs slid over the corpus as one stream of ids; here
documents are packed and do not see each other.
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.rwkv import rwkv4
from ssmlab.tasks import NextToken
from ssmlab.train import AdamW, Experiment, Train

STEPS_PER_MINI_EPOCH = 40320 // 128


def config():
  return Experiment(
      model=dataclasses.replace(rwkv4('169M'), activations='bfloat16'),
      data=Data(Text('data/pile', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/20B_tokenizer.json'), length=1024, batch_size=128),
      task=NextToken(max_logit=1e-4),
      optim=AdamW(peak_lr=6e-4, warmup_steps=1, decay='exponential', end_ratio=1e-5 / 6e-4, hold_steps=361 * STEPS_PER_MINI_EPOCH,
                  b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.0),
      train=Train(steps=8043 * STEPS_PER_MINI_EPOCH, log_every=100, checkpoint_every=5000),
      evals=(('valid', HeldOut(every=10000, max_tokens=2**20)),))
