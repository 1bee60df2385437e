"""CALM's two stages: what the autoencoder's numbers say, and that the second stage takes the first one's autoencoder and no other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.config import UserError
from ssmlab.core.params import init
from ssmlab.data import Bytes, Chunks, Data, Text
from ssmlab.eval import HeldOut
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.attention import Attention
from ssmlab.models import CALM, Autoencoder
from ssmlab.models.calm import EnergyHead
from ssmlab.tasks import Autoencode, NextVector
from ssmlab.train import AdamW, Experiment, Train, loop, workdir

MODEL = Autoencoder(vocab=256, chunk=2, width=16, hidden=24, latent=8, dropout=0.4)
TOKENS = np.random.default_rng(0).integers(0, 256, (3, 12)).astype(np.int32)
BATCH = dict(tokens=TOKENS, targets=TOKENS, segment_ids=np.ones_like(TOKENS))


@pytest.fixture(scope='module')
def params():
  return jax.tree.map(lambda leaf: leaf + 0.05, init(jax.random.key(0), MODEL.params()))


def test_held_out_is_the_mean_cross_entropy_of_posterior_samples(params):
  """With a posterior as sharp as a point every place of the sweep is that point, where its noise is as small."""
  sharp = dict(params, encoder=dict(params['encoder'], latent=dict(
      w=params['encoder']['latent']['w'].at[:, 8:].set(0.0), b=params['encoder']['latent']['b'].at[8:].set(-30.0))))
  total, (count, sums) = Autoencode(sweep=(0.0, 3.0)).held_out(MODEL, sharp, BATCH, jax.random.key(0))
  mean, _ = MODEL.encode(sharp, TOKENS)
  logits = MODEL.decode(sharp, mean).reshape(*TOKENS.shape, -1)
  nats = -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), TOKENS[..., None], axis=-1))
  hits = np.sum(np.argmax(logits, axis=-1) == TOKENS)
  np.testing.assert_allclose(total, nats, rtol=1e-5)
  assert count == TOKENS.size and sums['accuracy'] == hits == sums['accuracy_at_0'] and set(sums) == {'loss', 'accuracy', 'accuracy_at_0', 'accuracy_at_3'}


def test_the_training_loss_is_the_papers(params):
  """Without dropout: K * mean cross entropy + weight * mean over chunks of the floored divergence."""
  model = dataclasses.replace(MODEL, dropout=0.0)
  total, (count, sums) = Autoencode(kl_weight=0.5, kl_floor=0.02).loss(model, params, BATCH, jax.random.key(0))
  mean, log_std = (np.asarray(a, np.float64) for a in model.encode(params, TOKENS))
  divergence = np.maximum(0.5 * (mean ** 2 + np.exp(2 * log_std) - 1 - 2 * log_std), 0.02).sum(-1).mean()
  assert sums['divergence'] / count == pytest.approx(divergence, rel=1e-5)
  assert total / count == pytest.approx(2 * float(sums['cross_entropy'] / count) + 0.5 * divergence, rel=1e-5)


def test_padding_does_not_count(params):
  task, there = Autoencode(), dict(BATCH, targets=np.where(np.arange(12) < 8, TOKENS, -1))
  _, (count, sums) = task.loss(MODEL, params, there, jax.random.key(0))
  changed = np.where(np.arange(12) < 8, TOKENS, 0)
  _, (_, other) = task.loss(MODEL, params, dict(there, tokens=changed), jax.random.key(0))
  assert count == 24 and all(np.allclose(sums[name], other[name]) for name in sums)


def test_dropout_hides_tokens_but_not_labels(params):
  uniform = np.random.default_rng(1).random(TOKENS.shape)
  dropped = np.asarray(MODEL.drop_tokens(TOKENS, uniform))
  assert (dropped == np.where(uniform > 0.4, TOKENS, 0)).all()
  kept = MODEL.drop_latent(jnp.ones((2000, 8)), jax.random.bernoulli(jax.random.key(0), 0.6, (2000, 8)))
  assert set(np.unique(np.round(np.asarray(kept), 5))) == {0.0, np.float32(1.66667)} and abs(float(kept.mean()) - 1) < 0.03


@pytest.fixture(scope='module')
def stages(tmp_path_factory):
  """Both stages, four steps each, on a few lines: (folder, the second's experiment)."""
  folder = tmp_path_factory.mktemp('calm')
  (folder / 'text.txt').write_text('It was a dark and stormy night.\n' * 200)
  source = Text(str(folder / 'text.txt'), valid=str(folder / 'text.txt'))
  autoencoder = dataclasses.replace(MODEL, dropout=0.1)
  evals = (('valid', HeldOut(max_tokens=64, final_max_tokens=64)),)
  first = Experiment(model=autoencoder, data=Chunks(source, Bytes(), length=32, batch_size=2, chunk=2), task=Autoencode(), optim=AdamW(peak_lr=1e-2),
                     train=Train(steps=4), evals=evals)
  model = CALM(vocab=256, width=16, depth=2, pattern=(Attention(heads=2, head_dim=8),), channel=GatedMLP(24), autoencoder=MODEL,
               head=EnergyHead(blocks=1, noise=4, samples=2, targets=3))
  second = Experiment(model=model, data=Data(source, Bytes(), length=32, batch_size=2), task=NextVector(), optim=AdamW(peak_lr=1e-2), evals=evals,
                      train=Train(steps=4, start=str(folder / 'first'), start_at='autoencoder'))
  loop.run(first, folder / 'first', quiet=True)
  return folder, second


def test_the_second_stage_keeps_the_firsts_autoencoder(stages):
  folder, second = stages
  summary = loop.run(second, folder / 'second', quiet=True)
  theirs, ours = (workdir.load(folder / name)[1] for name in ('first', 'second'))
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), theirs, ours['autoencoder']))
  assert {'valid/loss', 'valid/fidelity', 'valid/diversity'} <= set(summary)
  assert not {'valid/perplexity', 'valid/bits_per_byte'} & set(summary)                 # a score of vectors is neither
  assert summary['valid/loss'] == pytest.approx(summary['valid/fidelity'] - summary['valid/diversity'], rel=1e-4)


@pytest.mark.parametrize('change, said', [
    (dict(start='nowhere'), 'nowhere is not a workdir'),
    (dict(model=dict(latent=9)), 'latent is 8 there and model.autoencoder.latent is 9 here'),
    (dict(model=dict(chunk=4)), 'chunk is 2 there and model.autoencoder.chunk is 4 here'),
    (dict(part='head'), 'holds a Autoencoder, but model.head is a EnergyHead'),
    (dict(part='body'), "train.start_at='body' is no part of CALM")])
def test_an_autoencoder_that_does_not_fit_is_one_line(stages, tmp_path, change, said):
  _, second = stages
  model = dataclasses.replace(second.model, autoencoder=dataclasses.replace(MODEL, **change.get('model', {})))
  train = dataclasses.replace(second.train, start=change.get('start', second.train.start), start_at=change.get('part', 'autoencoder'))
  with pytest.raises(UserError, match=said) as error:
    loop.run(dataclasses.replace(second, model=model, train=train), tmp_path, quiet=True)
  assert '\n' not in str(error.value)


def test_rows_must_be_whole_chunks(stages):
  _, second = stages
  with pytest.raises(UserError, match='data.length=33 is not a multiple of 2, the tokens in a chunk of CALM'):
    dataclasses.replace(second, data=dataclasses.replace(second.data, length=33)).check(1)
  with pytest.raises(ValueError, match="train.start_at='autoencoder' needs train.start"):
    Train(start_at='autoencoder')
