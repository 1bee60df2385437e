"""RWKV-7, bytes of English novels (or of any text: data.source=FOLDER).  Architecture: arXiv 2503.14456.

Measured 2026-11-22, 2 CPU cores, seed 0, on ../shared/data/lm: 2.340 bits per byte on the first 262,144 bytes of the held-out novels after
1.02M bytes of training; gzip -9 makes 3.166 of the same bytes.

python -m ssmlab.launch experiments/novels_rwkv7_tiny.py data.source.path=../shared/data/lm/novels-train.jsonl.xz
"""

import dataclasses

from experiments.quickstart import config as base
from ssmlab.data import Text
from ssmlab.eval import Compressors, HeldOut, Sample

NOVELS = '../shared/data/lm/novels-{}.jsonl.xz'


def config():
  start = base()
  source = Text(NOVELS.format('train'), valid=NOVELS.format('valid'), test=NOVELS.format('test'))
  evals = (('valid', HeldOut(every=250, max_tokens=32768, final_max_tokens=262144)), ('sample', Sample('It was ')), ('baseline', Compressors(max_bytes=262144)))
  return dataclasses.replace(start, data=dataclasses.replace(start.data, source=source), evals=evals)
