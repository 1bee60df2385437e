"""experiments/mosaicbert_novels.py fine-tuned on a little of CoLA: Matthews' correlation with spread over seeds.  Data: arXiv 1805.12471.

python -m ssmlab.launch experiments/mosaicbert_novels_cola.py train.start=runs/mosaicbert_novels/0 --sweep

Of the 527 sentences of CoLA's in-domain development set 30% are held out; CoLA's training sentences are not in ../shared/data.  Matthews on them,
seeds 0 to 3, 2026-11-23, one CPU core: 0.02, 0.12, -0.09, -0.10 (mean -0.01, deviation 0.10); experiments/bert_novels_cola.py 0.00 four times (one
answer for all, right for 67.7% of them).  369 sentences after 1M bytes of novels teach neither of them anything about grammar.
"""

import dataclasses

from experiments.mosaicbert_small_cola import config as base
from experiments.mosaicbert_small_cola import sweep  # noqa: F401  four seeds
from ssmlab.data.sentences import GLUE, Table


def config():
  start = base()
  source = Table('../shared/data/eval/cola-in-domain-dev.tsv.xz', **GLUE['cola'], valid_share=0.3, test_share=0.0)
  return dataclasses.replace(start, data=dataclasses.replace(start.data, source=source, length=128), train=dataclasses.replace(start.train, steps=60))
