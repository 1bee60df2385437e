"""Kimi Linear's hybrid, dense, 1.0B parameters, 85.2B tokens: three KDA to one attention without positions.  Paper: arXiv 2510.26692, table 2.

Layers, width, heads, tokens, batch, length and rate are of the third row of that table, a mixture of experts of 1.1B active parameters; no
dense run is published.  FineWeb-Edu as text in data/fineweb_edu, Llama 2's tokenizer.json as data/llama2_tokenizer.json: theirs are not public.

python -m ssmlab.launch experiments/kimi_linear_1b.py --workdir DIR

Their optimiser is Muon, scaled to take AdamW's rates; here it is AdamW.  The table does not say the schedule, which is that of the paper's large
run (warm-up, stable, decay), nor warm-up, end, decay of weights and clipping, which are chosen here.
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.hybrid import kimi_linear
from ssmlab.train import AdamW, Experiment, Train

LENGTH, ROWS, TOKENS = 4096, 512, 85_200_000_000


def config():
  return Experiment(
      model=dataclasses.replace(kimi_linear(depth=20, width=1536, heads=20, vocab=32000), activations='bfloat16'),
      data=Data(Text('data/fineweb_edu', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/llama2_tokenizer.json', end_token='</s>'),
                length=LENGTH, batch_size=ROWS),
      optim=AdamW(peak_lr=1.617e-3, warmup_steps=500, decay='stable', end_ratio=0.1, b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0),
      train=Train(steps=TOKENS // (LENGTH * ROWS), log_every=50, checkpoint_every=1000),
      evals=(('valid', HeldOut(every=5000, max_tokens=2**20)),))
