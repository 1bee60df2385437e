"""Jamba's hybrid, dense, 1.36B parameters, 250B tokens: one attention without positions in eight blocks.  Architecture: arXiv 2403.19887.

The paper compares hybrids, attention and Mamba at 1.3B parameters and 250B tokens; it gives neither layers and width nor the recipe, and its
corpus is not public.  Chosen here: 16 layers of 2048, FineWeb-Edu as text in data/fineweb_edu, Jamba's tokenizer.json as
data/jamba_tokenizer.json, and the recipe of Mamba (arXiv 2312.00752, appendix E.2) at this size, five times GPT-3's rate.

python -m ssmlab.launch experiments/jamba_1b3.py --workdir DIR
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.hybrid import jamba
from ssmlab.train import AdamW, Experiment, Train

LENGTH, ROWS = 2048, 256                                           # half a million tokens a step
STEPS = 250_000_000_000 // (LENGTH * ROWS)


def config():
  return Experiment(
      model=dataclasses.replace(jamba(depth=16, width=2048), activations='bfloat16'),
      data=Data(Text('data/fineweb_edu', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/jamba_tokenizer.json'),
                length=LENGTH, batch_size=ROWS),
      optim=AdamW(peak_lr=5 * 2e-4, warmup_steps=STEPS // 10, decay='cosine', end_ratio=1e-5 / (5 * 2e-4), b1=0.9, b2=0.95,
                  weight_decay=0.1, clip=1.0),
      train=Train(steps=STEPS, log_every=100, checkpoint_every=2000),
      evals=(('valid', HeldOut(every=10000, max_tokens=2**20)),))
