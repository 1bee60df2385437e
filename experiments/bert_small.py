"""BERT at the quick start's size, data and budget, 15% of the bytes masked.  Architecture: arXiv 1810.04805.

python -m ssmlab.launch experiments/bert_small.py

Documents, [CLS] and [MASK] as in experiments/mosaicbert_small.py, with which this differs in the model and the ratio only.
"""

import dataclasses

from experiments.mosaicbert_small import config as base
from ssmlab.layers.channel import MLP
from ssmlab.tasks import MaskedLM


def config():
  start = base()
  mixer = dataclasses.replace(start.model.pattern[0], alibi=False)
  embedding = dataclasses.replace(start.model.embedding, positions=start.data.most)
  model = dataclasses.replace(start.model, pattern=(mixer,), channel=MLP(810, start=0.02, depth_scaled=False), embedding=embedding)
  return dataclasses.replace(start, model=model, task=MaskedLM(mask=start.task.mask, ratio=0.15))
