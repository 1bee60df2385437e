"""CALM with a Transformer, chunks of 4 bytes, about 1.5M parameters, on the quick start's data and budget: the second stage.  arXiv 2510.27688.

python -m ssmlab.launch experiments/calm_autoencoder_small.py --workdir runs/calm_autoencoder_small
python -m ssmlab.launch experiments/calm_lm_small.py

The first stage's workdir is train.start.  Another backbone is one override, e.g. the quick start's RWKV-7: see calm_rwkv7_small.
"""

import dataclasses

from experiments.calm_autoencoder_small import config as autoencoder
from experiments.quickstart import config as base
from ssmlab.eval import HeldOut
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.attention import Attention
from ssmlab.models import CALM
from ssmlab.models.calm import EnergyHead
from ssmlab.tasks import NextVector


def config():
  experiment = base()
  model = CALM(vocab=256, width=144, pattern=(Attention(heads=4, head_dim=36),), depth=4, channel=GatedMLP(hidden=384), autoencoder=autoencoder().model,
               head=EnergyHead(blocks=1), remat='none')
  return dataclasses.replace(
      experiment, model=model, task=NextVector(), optim=dataclasses.replace(experiment.optim, peak_lr=2e-3, b2=0.95),
      train=dataclasses.replace(experiment.train, start='runs/calm_autoencoder_small', start_at='autoencoder'),
      evals=(('valid', HeldOut(every=250, max_tokens=4096)),))
