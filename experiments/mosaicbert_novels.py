"""MosaicBERT on paragraphs of English novels, 30% of the bytes masked, paragraphs packed.  Recipe: arXiv 2312.17482.

The paper's claim at a size that a CPU trains: BERT's quality in less time.  experiments/bert_novels.py is the other side: 15% masked, a
paragraph in a row and padding, learned positions, no gated MLP.  A step costs both the same: 8 rows of 256 bytes.

python -m ssmlab.launch experiments/mosaicbert_novels.py --sweep
"""

import dataclasses

from experiments.mosaicbert_small import config as base
from experiments.novels_rwkv7_tiny import NOVELS
from ssmlab.data import Text
from ssmlab.eval import HeldOut, Padding

PARAGRAPHS = Text(NOVELS.format('train'), valid=NOVELS.format('valid'), test=NOVELS.format('test'), separator='\n\n')


def config():
  start = base()
  return dataclasses.replace(start, data=dataclasses.replace(start.data, source=PARAGRAPHS, most=256),
                             evals=(('valid', HeldOut(every=50, max_tokens=65536, final_max_tokens=262144)), ('padding', Padding())))


def sweep():
  return [{'train.seed': seed, 'data.seed': seed} for seed in range(3)]
