"""ModernBERT base, 149M parameters, 1.7T tokens at length 1024: the first phase.  Paper: ModernBERT, arXiv 2412.13663, section 3 and table 3.

Published (after all phases, GLUE dev): average 88.4; CoLA 65.1, SST-2 96.0, MRPC 92.2, STS-B 91.8, QQP 92.1, MNLI 89.1, QNLI 93.9, RTE 87.4.
The corpus, which is not public, as text in data/modernbert, the model's tokenizer.json as data/modernbert.json.

python -m ssmlab.launch experiments/modernbert_base.py --workdir DIR

In this phase the global layers have the local ones' rotary base of 10,000 (160,000 with length 8192 in the next).  Rate and warm-up over 3B
tokens are the authors' configuration's (AnswerDotAI/ModernBERT); batches grow to 4608 sequences there and have that size from the start
here.  AdamW stands for StableAdamW, whose decay of 1e-5 per step is optax's of 1e-5 / 8e-4.
"""

import dataclasses

from ssmlab.data import Documents, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.bert import modernbert
from ssmlab.tasks import MaskedLM
from ssmlab.train import AdamW, Experiment, Train

TOKENS_PER_STEP = 4608 * 1024


def config():
  model = modernbert('base')
  pattern = tuple(dataclasses.replace(mixer, theta=10000.0) for mixer in model.pattern)
  return Experiment(
      model=dataclasses.replace(model, pattern=pattern, mixer_dropout=0.1, activations='bfloat16'),
      data=Documents(Text('data/modernbert', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/modernbert.json', end_token='[CLS]'), length=1024,
                     batch_size=4608, most=1024, separator=50282),
      task=MaskedLM(mask=50284, ratio=0.3),
      optim=AdamW(peak_lr=8e-4, warmup_steps=round(3e9 / TOKENS_PER_STEP), decay='constant', b1=0.9, b2=0.98, eps=1e-6, weight_decay=1e-5 / 8e-4, clip=0.0),
      train=Train(steps=round(1.7e12 / TOKENS_PER_STEP), log_every=100, checkpoint_every=5000),
      evals=(('valid', HeldOut(every=5000, max_tokens=2**20)),))
