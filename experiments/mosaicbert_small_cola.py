"""The small MosaicBERT fine-tuned on CoLA's bytes: the two-stage path on a CPU.  Data: arXiv 1805.12471, as GLUE has it, in data/CoLA.

python -m ssmlab.launch experiments/mosaicbert_small_cola.py train.start=runs/mosaicbert_small

The run that it starts from: python -m ssmlab.launch experiments/mosaicbert_small.py
"""

import dataclasses

from experiments.mosaicbert_small import config as base
from ssmlab.data import Bytes, Sentences, glue
from ssmlab.eval import HeldOut, Scores
from ssmlab.layers.embedding import Classifier
from ssmlab.tasks import Classify


def config():
  start = base()
  return dataclasses.replace(
      start, model=dataclasses.replace(start.model, head=None, classifier=Classifier(2)), task=Classify(),
      data=Sentences(glue('cola', 'data/CoLA/train.tsv', 'data/CoLA/dev.tsv'), Bytes(), length=128, batch_size=32),
      optim=dataclasses.replace(start.optim, peak_lr=5e-4, end_ratio=0.0), evals=(('valid', HeldOut()), ('score', Scores(('matthews', 'accuracy')))))


def sweep():
  return [{'train.seed': seed, 'data.seed': seed} for seed in range(4)]
