"""GLA, 1.3B parameters, 100B tokens of SlimPajama.  Paper: Gated Linear Attention, arXiv 2312.06635, section 5.1.

Published (table 2): WikiText perplexity 17.22, LAMBADA perplexity 14.47, average accuracy 51.0.  SlimPajama as text in data/slimpajama,
Mistral's tokenizer.json as data/mistral_tokenizer.json.

python -m ssmlab.launch experiments/gla_1b3.py --workdir DIR

The count is 1.37B: the paper's 1.3B leaves one of the two tables out.  Its warm-up begins at 3e-5, ours at peak / steps; it does not say the
betas: 0.9 and 0.95 are chosen here.  Documents are packed and do not see each other.
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.linear import gla
from ssmlab.train import AdamW, Experiment, Train

LENGTH, ROWS = 2048, 1024                                          # 2M tokens a step
TOKENS, WARMUP = 100_000_000_000, 1_000_000_000


def config():
  return Experiment(
      model=dataclasses.replace(gla('1.3B'), activations='bfloat16'),
      data=Data(Text('data/slimpajama', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/mistral_tokenizer.json', end_token='</s>'),
                length=LENGTH, batch_size=ROWS),
      optim=AdamW(peak_lr=3e-4, warmup_steps=WARMUP // (LENGTH * ROWS), decay='cosine', end_ratio=0.1, b1=0.9, b2=0.95, weight_decay=0.01, clip=1.0),
      train=Train(steps=TOKENS // (LENGTH * ROWS), log_every=50, checkpoint_every=1000),
      evals=(('valid', HeldOut(every=5000, max_tokens=2**20)),))
