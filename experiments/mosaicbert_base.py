"""MosaicBERT base, 137M parameters, 286.7M documents of C4.  Paper: MosaicBERT, arXiv 2312.17482.

Published: average GLUE-dev 79.6 in 1.13 h on 8 A100-80GB; after all 70,000 steps (mean of five seeds, model card) MNLI 84.95, QQP 90.29,
QNLI 90.74, SST-2 92.46, CoLA 55.11, STS-B 89.27, MRPC 90.03, RTE 81.36, average 84.28.  C4 as text in data/c4, bert-base-uncased's
tokenizer.json as data/bert-base-uncased.json.

python -m ssmlab.launch experiments/mosaicbert_base.py --workdir DIR

A document is its first 128 tokens, alone in a row, as in the authors' runs; they gather the tokens that are no padding on the way through
the network, for which data.pack=True with a longer data.length stands here.  Composer's decoupled weight decay of 1e-5 is optax's of
1e-5 / 5e-4 = 0.02; biases and norms, which the authors decay too, are not decayed here.
"""

import dataclasses

from ssmlab.data import Documents, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.bert import mosaicbert
from ssmlab.tasks import MaskedLM
from ssmlab.train import AdamW, Experiment, Train

STEPS = 70000


def config():
  return Experiment(
      model=dataclasses.replace(mosaicbert('base'), activations='bfloat16'),
      data=Documents(Text('data/c4', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/bert-base-uncased.json', end_token='[CLS]'), length=128,
                     batch_size=4096, seed=17, pack=False, most=128, separator=102, rest=False),
      task=MaskedLM(mask=103, ratio=0.3),
      optim=AdamW(peak_lr=5e-4, warmup_steps=STEPS * 6 // 100, decay='linear', end_ratio=0.02, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.02, clip=0.0),
      train=Train(steps=STEPS, seed=17, log_every=100, checkpoint_every=3500),
      evals=(('valid', HeldOut(every=2000, max_tokens=2**20)),))
