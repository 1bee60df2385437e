"""CALM with an RWKV-7 backbone, bytes of English novels, at the training FLOPs of novels_rwkv7_tiny.  CALM: arXiv 2510.27688.

python -m ssmlab.launch experiments/calm_autoencoder_novels.py --sweep
python -m ssmlab.launch experiments/calm_rwkv7_novels.py --sweep
"""

from experiments.calm_autoencoder_novels import config as autoencoder
from experiments.calm_rwkv7_small import entries, second_stage
from experiments.novels_rwkv7_tiny import config as base


def config():
  return second_stage(base(), autoencoder().model, 'runs/calm_autoencoder_novels/1')


def sweep():
  """Chunks of 2, 4 and 8 bytes: the entries of calm_autoencoder_novels' sweep."""
  return entries(base(), autoencoder().model, 'runs/calm_autoencoder_novels')
