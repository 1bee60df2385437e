"""CALM with an RWKV-7 backbone, bytes of English novels, at the training FLOPs of novels_rwkv7_tiny.  CALM: arXiv 2510.27688.

Measured 2026-11-23 as calm_rwkv7_small (whose speeds are these, too), 131,072 bytes of the held-out novels: BrierLM 10.2 (10.0 to 10.4) for
novels_rwkv7_tiny; 0.11 (0.00 to 0.19), 0.19 (0.00 to 0.31) and 0.00 (0.00 to 0.13) with chunks of 2, 4 and 8 bytes, whose autoencoders bring back
99.99%, 99.98% and 99.2%.  At these FLOPs such a CALM has hardly learned which bytes are frequent.

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
