"""RoBERTa at the quick start's size, data and budget: BERT with whole rows, 15% of the bytes masked.  Architecture: arXiv 1907.11692.

python -m ssmlab.launch experiments/roberta_small.py

Documents are of 256 bytes, one in a row, with RoBERTa's optimiser settings; all else is as in experiments/bert_small.py.
"""

import dataclasses

from experiments.bert_small import config as base
from ssmlab.layers.norms import LayerNorm


def config():
  start, norm = base(), LayerNorm(1e-5)
  embedding = dataclasses.replace(start.model.embedding, norm=norm, positions=start.data.length, offset=2, types=1)
  model = dataclasses.replace(start.model, norm=norm, embedding=embedding, head=dataclasses.replace(start.model.head, norm=norm))
  optim = dataclasses.replace(start.optim, weight_decay=0.01, end_ratio=0.0)
  return dataclasses.replace(start, model=model, optim=optim, data=dataclasses.replace(start.data, most=start.data.length))
