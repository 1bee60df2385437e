"""RecurrentGemma 2B (2.68B parameters with the embedding), 2T tokens.  Paper: RecurrentGemma, arXiv 2404.07839, table 1 and "Pre-training".

Published: tokens, length and tokenizer.  The corpus, Gemma's, is not public; here it is FineWeb-Edu as text in data/fineweb_edu, with Gemma's
tokenizer.json as data/gemma_tokenizer.json.

python -m ssmlab.launch experiments/recurrentgemma_2b.py --workdir DIR

The paper says neither batch nor rate, schedule, betas, decay and clipping (Griffin's, arXiv 2402.19427, only that they were tuned on small
models): all of these are chosen here.  It decays nothing in the RG-LRU; here the matrices of its gates are decayed.
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.griffin import recurrentgemma
from ssmlab.train import AdamW, Experiment, Train

LENGTH, ROWS = 8192, 512                                           # 4M tokens a step
TOKENS = 2_000_000_000_000


def config():
  return Experiment(
      model=dataclasses.replace(recurrentgemma('2B'), activations='bfloat16'),
      data=Data(Text('data/fineweb_edu', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/gemma_tokenizer.json', end_token='<eos>'),
                length=LENGTH, batch_size=ROWS),
      optim=AdamW(peak_lr=3e-4, warmup_steps=2000, decay='cosine', end_ratio=0.1, b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0),
      train=Train(steps=TOKENS // (LENGTH * ROWS), log_every=100, checkpoint_every=2000),
      evals=(('valid', HeldOut(every=10000, max_tokens=2**20)),))
