"""PanGu-pi, 1.0B parameters, 1.6T tokens of Chinese and English.  Paper: arXiv 2312.17276, section 5.1.

Published (table 6): average 40.46 over its benchmarks (C-Eval 36.85, MMLU 35.96, PIQA 61.92).  The authors' corpus and tokenizer are not
public: a Chinese and English text half and half in data/pangu, a SentencePiece vocabulary of 100,883 as data/pangu_tokenizer.json.

python -m ssmlab.launch experiments/pangu_pi_1b.py --workdir DIR

The paper gives AdamW's betas, the peak, 4000 steps of warm-up, the cosine and 4M tokens a step; weight decay 0.1, clipping at 1 and rows
of 2048 are not stated and chosen here.  See models/presets/pangu.py for what of the model is.
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.pangu import pangu_pi
from ssmlab.train import AdamW, Experiment, Train

LENGTH, ROWS = 2048, 2048                                          # 4.2M tokens a step
TOKENS = 1_600_000_000_000


def config():
  return Experiment(
      model=dataclasses.replace(pangu_pi('1B'), activations='bfloat16'),
      data=Data(Text('data/pangu', valid_share=0.0001, test_share=0.0001), HFTokenizer('data/pangu_tokenizer.json', end_token='</s>'), length=LENGTH, batch_size=ROWS),
      optim=AdamW(peak_lr=3e-4, warmup_steps=4000, decay='cosine', end_ratio=0.1, b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0),
      train=Train(steps=TOKENS // (LENGTH * ROWS), log_every=50, checkpoint_every=1000),
      evals=(('valid', HeldOut(every=5000, max_tokens=2**20)),))
