"""CALM's autoencoder for chunks of 4 bytes, at CPU size, on the quick start's data: the first stage of calm_lm_small.  arXiv 2510.27688.

`valid/accuracy`: the share of held-out bytes that come back while the vector is drawn from the posterior; it must be above 99.9%.
Measured 2026-11-22, 2 CPU cores that others used as well, Python 3.11.7 (whose sources are the data), seed 0: 99.94% of all 153,844 bytes of the
validation split after 4.1M bytes; 98.8% with noise of 0.5 around the mean.  454 s in all, compilation and the evaluations included.

python -m ssmlab.launch experiments/calm_autoencoder_small.py
"""

from ssmlab.data import Bytes, Chunks, StandardLibrary
from ssmlab.eval import HeldOut
from ssmlab.models.calm import Autoencoder
from ssmlab.tasks import Autoencode
from ssmlab.train import AdamW, Experiment, Train


def config():
  return Experiment(
      model=Autoencoder(vocab=256, chunk=4, width=128, hidden=320, latent=64),
      data=Chunks(StandardLibrary(valid_share=0.02, test_share=0.02), Bytes(), length=512, batch_size=16, chunk=4),
      task=Autoencode(),
      optim=AdamW(peak_lr=2e-3, warmup_steps=50, b1=0.9, b2=0.95, weight_decay=0.1, end_ratio=0.05),
      train=Train(steps=500, log_every=50, checkpoint_every=0),
      evals=(('valid', HeldOut(every=250, max_tokens=2**16)),))


def sweep():
  """Chunks of 2, 4 and 8 bytes, with 16 latent entries a byte."""
  return [{'model.chunk': chunk, 'model.latent': 16 * chunk, 'data.chunk': chunk} for chunk in (2, 4, 8)]
