"""BERT on paragraphs of English novels, 15% of the bytes masked, a paragraph in a row.  The figures: experiments/mosaicbert_novels.py.

python -m ssmlab.launch experiments/bert_novels.py --sweep
"""

import dataclasses

from experiments.bert_small import config as base
from experiments.mosaicbert_novels import config as other
from experiments.mosaicbert_novels import sweep  # noqa: F401  three seeds


def config():
  start, data = base(), dataclasses.replace(other().data, pack=False)
  embedding = dataclasses.replace(start.model.embedding, positions=data.most)
  return dataclasses.replace(start, model=dataclasses.replace(start.model, embedding=embedding), data=data, evals=other().evals)
