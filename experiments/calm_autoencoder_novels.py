"""CALM's autoencoder on bytes of English novels: the first stage of calm_rwkv7_novels.  arXiv 2510.27688.

python -m ssmlab.launch experiments/calm_autoencoder_novels.py --sweep
"""

import dataclasses

from experiments.calm_autoencoder_small import config as base
from experiments.calm_autoencoder_small import sweep  # noqa: F401  chunks of 2, 4 and 8 bytes
from experiments.novels_rwkv7_tiny import config as novels


def config():
  start = base()
  return dataclasses.replace(start, data=dataclasses.replace(start.data, source=novels().data.source))
