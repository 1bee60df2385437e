"""RWKV-7 (Goose), 168M parameters, one pass over the Pile (332B tokens).  Architecture: arXiv 2503.14456; recipe: BlinkDL/RWKV-LM,
RWKV-v7/train_temp (the run of RWKV-x070-Pile-168M).

Published: LAMBADA perplexity 14.2, accuracy 45.6 %; PIQA 65.5 (model card).  8 GPUs with 30 sequences each.  The Pile as text in
data/pile, GPT-NeoX-20B's tokenizer.json as data/20B_tokenizer.json.

python -m ssmlab.launch experiments/rwkv7_pile_170m.py --workdir DIR

The author's run reads the corpus as one stream of ids; here documents are packed and do not see each other.  His warm-up of 10 steps begins
at a hundredth of the rate, ours at a tenth.
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.rwkv import rwkv7_pile
from ssmlab.tasks import NextToken
from ssmlab.train import AdamW, Experiment, Train

LENGTH, ROWS, TOKENS = 4096, 8 * 30, 332_115_325_534


def config():
  return Experiment(
      model=dataclasses.replace(rwkv7_pile('168M'), activations='bfloat16'),
      data=Data(Text('data/pile', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/20B_tokenizer.json'), length=LENGTH, batch_size=ROWS),
      task=NextToken(max_logit=1e-4),
      optim=AdamW(peak_lr=8e-4, warmup_steps=10, decay='cosine', end_ratio=3e-5 / 8e-4, b1=0.9, b2=0.99, eps=1e-18, weight_decay=0.1, clip=1.0),
      train=Train(steps=TOKENS // (LENGTH * ROWS), log_every=100, checkpoint_every=5000),
      evals=(('valid', HeldOut(every=10000, max_tokens=2**20)),))
