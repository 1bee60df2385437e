"""Gated DeltaNet, 1.3B parameters, 100B tokens of FineWeb-Edu.  Paper: Gated Delta Networks, arXiv 2412.06464, section 4.

Published (table 3): WikiText perplexity 16.42, LAMBADA perplexity 12.17, average of 8 tasks 55.32.  FineWeb-Edu as text in data/fineweb_edu,
Llama 2's tokenizer.json as data/llama2_tokenizer.json.

python -m ssmlab.launch experiments/gated_deltanet_1b3.py --workdir DIR

The count is 1.39B: the paper's 1.3B leaves one of the two tables out.  It does not say the end of the cosine nor the betas: a tenth of the
peak, 0.9 and 0.95 are chosen here.  Documents are packed and do not see each other.
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.delta import gated_deltanet_paper
from ssmlab.train import AdamW, Experiment, Train

LENGTH, ROWS = 4096, 128                                           # half a million tokens a step
TOKENS, WARMUP = 100_000_000_000, 1_000_000_000


def config():
  return Experiment(
      model=dataclasses.replace(gated_deltanet_paper('1.3B'), activations='bfloat16'),
      data=Data(Text('data/fineweb_edu', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/llama2_tokenizer.json', end_token='</s>'),
                length=LENGTH, batch_size=ROWS),
      optim=AdamW(peak_lr=4e-4, warmup_steps=WARMUP // (LENGTH * ROWS), decay='cosine', end_ratio=0.1, b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0),
      train=Train(steps=TOKENS // (LENGTH * ROWS), log_every=100, checkpoint_every=2000),
      evals=(('valid', HeldOut(every=10000, max_tokens=2**20)),))
