"""CALM with the quick start's RWKV-7 as its backbone, at the quick start's training FLOPs.  CALM: arXiv 2510.27688; RWKV-7: arXiv 2503.14456.

Measured 2026-11-23, one CPU core each beside another run, Python 3.11.7 (whose sources are the data), seed 0: BrierLM on 131,072 bytes of the validation
split with its 95% interval; seconds per byte at batch 1 from `ssmlab bench inference RUNS` on 2 idle cores; 9.56e12 FLOPs of training each, to which
the first stage's come.

                    BrierLM               ms per byte   bytes read   first stage
  quickstart        35.2 (33.8 to 36.5)   0.426         1.02M        -
  chunks of 2        2.7 (2.4 to 3.0)     0.293         0.89M        1.08e13 FLOPs, 99.99% of held-out bytes come back
  chunks of 4       11.5 (10.3 to 12.7)   0.157         1.68M        9.3e12, 99.94%
  chunks of 8        3.3 (2.5 to 4.2)     0.088         2.98M        8.6e12, 73.6%: it has not learned yet

So at this size chunks are 1.5, 2.7 and 4.8 times as fast and far from as good; nearly half of a CALM's FLOPs go into the eight samples of the energy head.

python -m ssmlab.launch experiments/calm_autoencoder_small.py --sweep
python -m ssmlab.launch experiments/calm_rwkv7_small.py --sweep
"""

import dataclasses

from experiments.calm_autoencoder_small import config as autoencoder
from experiments.calm_autoencoder_small import sweep as autoencoders
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
  """Overrides of `second_stage` for every autoencoder of the first stage's sweep, whose workdirs are in `starts`."""
  found = []
  for index, entry in enumerate(autoencoders()):
    chunk, latent = entry['model.chunk'], entry['model.latent']
    of = second_stage(plain, dataclasses.replace(first, chunk=chunk, latent=latent), f'{starts}/{index}')
    found.append({'model.autoencoder.chunk': chunk, 'model.autoencoder.latent': latent, 'data.length': of.data.length, 'train.steps': of.train.steps,
                  'train.start': of.train.start})
  return found
