"""CALM with the quick start's RWKV-7 as its backbone, at the quick start's training FLOPs.  CALM: arXiv 2510.27688; RWKV-7: arXiv 2503.14456.

python -m ssmlab.launch experiments/calm_autoencoder_small.py --sweep
python -m ssmlab.launch experiments/calm_rwkv7_small.py --sweep
"""

import dataclasses

from experiments.calm_autoencoder_small import config as autoencoder
from experiments.quickstart import config as base
from ssmlab.eval import BrierLM, HeldOut
from ssmlab.layers.norms import LayerNorm
from ssmlab.models import CALM
from ssmlab.models.calm import EnergyHead
from ssmlab.tasks import NextVector


def config():
  return second_stage(base(), autoencoder().model, 'runs/calm_autoencoder_small/1')


def sweep():
  """Chunks of 2, 4 and 8 bytes: the entries of calm_autoencoder_small's sweep."""
  return entries(base(), autoencoder().model, 'runs/calm_autoencoder_small')


def second_stage(plain, first, start: str):
  """The experiment of `plain`, a causal LM's, with chunks: as many positions in a row, half as many rows, and as many steps as its training
  FLOPs allow.

  first: the autoencoder.  start: its workdir.
  """
  lm = plain.model
  model = CALM(vocab=lm.vocab, width=lm.width, pattern=lm.pattern, depth=lm.depth, channel=lm.channel, norm=LayerNorm(), autoencoder=first,
               head=EnergyHead(blocks=1), remat='none')
  data = dataclasses.replace(plain.data, length=first.chunk * plain.data.length, batch_size=plain.data.batch_size // 2)
  share = 2 * lm.flops(plain.data.length) * plain.data.length / (model.flops(data.length) * data.length)
  train = dataclasses.replace(plain.train, steps=round(share * plain.train.steps), start=start, start_at='autoencoder')
  return dataclasses.replace(plain, model=model, data=data, task=NextVector(), train=train, optim=dataclasses.replace(plain.optim, peak_lr=2e-3, b2=0.95),
                             evals=(('valid', HeldOut(final_max_tokens=2**16)), ('brier', BrierLM(final_max_tokens=2**17))))


def entries(plain, first, starts: str):
  """Overrides of `second_stage` for chunks of 2, 4 and 8 bytes."""
  found = []
  for index, chunk in enumerate((2, 4, 8)):
    of = second_stage(plain, dataclasses.replace(first, chunk=chunk, latent=16 * chunk), f'{starts}/{index}')
    found.append({'model.autoencoder.chunk': chunk, 'model.autoencoder.latent': 16 * chunk, 'data.length': of.data.length, 'train.steps': of.train.steps,
                  'train.start': of.train.start})
  return found
