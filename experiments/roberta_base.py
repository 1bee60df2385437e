"""RoBERTa base, 125M parameters, 500k steps of 8192 sequences, 160 GB of text.  Paper: RoBERTa, arXiv 1907.11692, table 9.

Published (GLUE dev, release's README): MNLI 87.6, QNLI 92.8, QQP 91.9, RTE 78.7, SST-2 94.8, MRPC 90.2, CoLA 63.6, STS-B 91.2.
The corpora as text in data/roberta, roberta-base's tokenizer.json as data/roberta-base.json.

python -m ssmlab.launch experiments/roberta_base.py --workdir DIR

The paper fills rows of 512 with sentences across documents' borders; here documents are packed and do not see each other.  The dropout of
attention's weights is left out.
"""

import dataclasses

from ssmlab.data import Documents, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.bert import roberta
from ssmlab.tasks import MaskedLM
from ssmlab.train import AdamW, Experiment, Train


def config():
  return Experiment(
      model=dataclasses.replace(roberta('base'), activations='bfloat16'),
      data=Documents(Text('data/roberta', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/roberta-base.json', end_token='<s>'), length=512,
                     batch_size=8192, most=512, separator=2),
      task=MaskedLM(mask=50264, ratio=0.15),
      optim=AdamW(peak_lr=6e-4, warmup_steps=24000, decay='linear', end_ratio=0.0, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.01, clip=0.0),
      train=Train(steps=500_000, log_every=100, checkpoint_every=5000),
      evals=(('valid', HeldOut(every=10000, max_tokens=2**20)),))
