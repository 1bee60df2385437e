"""CALM's autoencoder for chunks of 4 bytes, at CPU size, on the quick start's data: the first stage of calm_lm_small.  arXiv 2510.27688.

python -m ssmlab.launch experiments/calm_autoencoder_small.py

It must restore more than 99.9% of held-out bytes while z is drawn from the posterior; `valid/accuracy` is that share.
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
