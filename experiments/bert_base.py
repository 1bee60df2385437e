"""BERT base, 110M parameters, 1M steps on BooksCorpus and Wikipedia.  Paper: BERT, arXiv 1810.04805, appendix A.2 and table 1.

Published (GLUE test): average 79.6; MNLI 84.6/83.4, QQP 71.2, QNLI 90.5, SST-2 93.5, CoLA 52.1, STS-B 85.8, MRPC 88.9, RTE 66.4.
4 days on 4 cloud TPUs.  The two corpora as text in data/wikibooks, bert-base-uncased's tokenizer.json as data/bert-base-uncased.json.

python -m ssmlab.launch experiments/bert_base.py --workdir DIR

The paper trains nine tenths of the steps at length 128 and the rest at 512, here all are at 512 with documents packed; its next-sentence
task, its masks of 10 per document and the dropout of attention's weights are left out: masks are drawn anew in every step.
"""

import dataclasses

from ssmlab.data import Documents, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.bert import bert
from ssmlab.tasks import MaskedLM
from ssmlab.train import AdamW, Experiment, Train


def config():
  return Experiment(
      model=dataclasses.replace(bert('base'), activations='bfloat16'),
      data=Documents(Text('data/wikibooks', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/bert-base-uncased.json', end_token='[CLS]'),
                     length=512, batch_size=256, most=512, separator=102),
      task=MaskedLM(mask=103, ratio=0.15),
      optim=AdamW(peak_lr=1e-4, warmup_steps=10000, decay='linear', end_ratio=0.0, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01, clip=1.0),
      train=Train(steps=1_000_000, log_every=100, checkpoint_every=10000),
      evals=(('valid', HeldOut(every=10000, max_tokens=2**20)),))
