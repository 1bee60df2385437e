"""experiments/bert_novels.py fine-tuned on a little of CoLA, as experiments/mosaicbert_novels_cola.py is.

python -m ssmlab.launch experiments/bert_novels_cola.py train.start=runs/bert_novels/0 --sweep
"""

import dataclasses

from experiments.bert_novels import config as base
from experiments.mosaicbert_novels_cola import config as other
from experiments.mosaicbert_novels_cola import sweep  # noqa: F401  four seeds


def config():
  fine = other()
  return dataclasses.replace(fine, model=dataclasses.replace(base().model, head=None, classifier=fine.model.classifier))
