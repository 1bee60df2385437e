"""Fine-tuning: losses against plain ones, padding rows, a run that begins with another run's parameters and learns, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmlab
from ssmlab.core.config import UserError
from ssmlab.data import Bytes, Documents, Sentences, Table, Text
from ssmlab.eval import HeldOut, Scores
from ssmlab.layers.channel import MLP
from ssmlab.layers.embedding import Classifier, Embedding
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.attention import Attention
from ssmlab.tasks import Classify, MaskedLM
from ssmlab.train import AdamW, Experiment, Train, loop, workdir

TIME = 12
PRETRAINED = ssmlab.Encoder(320, 16, (Attention(2, 8, causal=False, alibi=True, rotary_fraction=0.0),), 1, MLP(24),
                            embedding=Embedding(norm=LayerNorm(1e-12), types=2))
MODEL = dataclasses.replace(PRETRAINED, head=None, classifier=Classifier(2))


def made(labels):
  random = np.random.default_rng(0)
  ids = np.ones((4, TIME), np.int32)
  ids[1, 5:], ids[3] = 0, 0
  arrays = dict(tokens=random.integers(97, 123, (4, TIME)), segment_ids=ids, types=np.tile(np.arange(TIME) > 6, (4, 1)))
  return {name: jnp.asarray(value, jnp.int32) for name, value in arrays.items()} | dict(labels=jnp.asarray(labels, jnp.float32))


@pytest.mark.parametrize('labels', (3, 1))
def test_losses(labels):
  """The last row is padding and does not count."""
  model = dataclasses.replace(MODEL, classifier=Classifier(labels))
  params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape), ssmlab.init(jax.random.key(0), model.params()))
  task, batch = Classify(regression=labels == 1), made([2, 0, 1, 0])
  total, (count, sums) = jax.jit(lambda params, batch: task.held_out(model, params, batch, jax.random.key(0)))(params, batch)
  outputs = model.classify(params, batch['tokens'], batch['segment_ids'], types=batch['types'])[:3, 0]
  predicted = task.predict(model, params, batch)[:3]
  if labels == 1:
    expected = np.sum((outputs[:, 0] - np.array([2, 0, 1])) ** 2)
    np.testing.assert_allclose(predicted, outputs[:, 0], rtol=1e-5)
  else:
    expected = -sum(np.asarray(jax.nn.log_softmax(outputs))[row, label] for row, label in enumerate((2, 0, 1)))
    assert (predicted == np.argmax(outputs, axis=-1)).all() and float(sums['accuracy']) == np.sum(np.asarray(predicted) == [2, 0, 1])
  assert float(total) == pytest.approx(float(expected), rel=1e-5) and int(count) == 3 and int(sums['tokens']) == 2 * TIME + 5
  dropped = [float(task.loss(model, params, batch, jax.random.key(seed))[0]) for seed in (0, 0, 1)]
  assert dropped[0] == dropped[1] != dropped[2]


def test_the_other_number_of_outputs_is_refused():
  with pytest.raises(ValueError, match='regression=True, but the model has 2 labels'):
    Classify(True).loss(MODEL, {}, made([0] * 4), jax.random.key(0))
  with pytest.raises(ValueError, match='regression=False, but the model has 0 labels'):
    Classify().loss(PRETRAINED, {}, made([0] * 4), jax.random.key(0))


def test_pretrained_then_fine_tuned(tmp_path, monkeypatch):
  """Trunk from the first run, classifier drawn; which of two alphabets a word is of is learnt."""
  monkeypatch.setenv('SSMLAB_CACHE', str(tmp_path / 'cache'))
  random = np.random.default_rng(0)
  words = [''.join(random.choice(list(letters), 4)) for _ in range(150) for letters in ('abcde', 'defgh')]
  (tmp_path / 'text.txt').write_text('\n'.join(words))
  (tmp_path / 'table.tsv').write_text('\n'.join(f'{number % 2}\t{word}' for number, word in enumerate(words)))
  train = Train(steps=3, log_every=10, checkpoint_every=0)
  first = Experiment(PRETRAINED, Documents(Text(str(tmp_path / 'text.txt'), piece=20), Bytes(), length=TIME, batch_size=4, most=TIME), MaskedLM(256),
                     AdamW(peak_lr=1e-3), train, evals=(('valid', HeldOut()),))
  loop.run(first, tmp_path / 'first', quiet=True)
  data = Sentences(Table(str(tmp_path / 'table.tsv'), ('1',), '0', valid_share=0.2, test_share=0.0), Bytes(), length=TIME, batch_size=32)
  second = Experiment(MODEL, data, Classify(), AdamW(peak_lr=2e-2, warmup_steps=5, weight_decay=0.0), dataclasses.replace(train, steps=60, start=str(tmp_path / 'first')),
                      evals=(('valid', HeldOut()), ('score', Scores(('matthews', 'accuracy', 'f1')))))
  taken = loop.from_workdir(ssmlab.init(jax.random.key(9), MODEL.params()), second.train.start)
  assert {name.split('/')[0] for name in taken[1]} == {'classifier'}
  before = workdir.load(tmp_path / 'first')[1]
  assert all(map(np.array_equal, jax.tree.leaves(taken[0]['blocks']), jax.tree.leaves(before['blocks'])))
  summary = loop.run(second, tmp_path / 'second', quiet=True)
  assert summary['score/matthews'] > 0.7 and summary['score/accuracy'] == pytest.approx(summary['valid/accuracy'])
  wider = dataclasses.replace(second, model=dataclasses.replace(MODEL, channel=MLP(32)))
  with pytest.raises(UserError, match='blocks/0/channel/b_up has shape'):
    loop.run(wider, tmp_path / 'third', quiet=True)
  with pytest.raises(UserError, match='Classify predicts labels, but the targets of Documents are tokens'):
    loop.run(dataclasses.replace(first, task=Classify()), tmp_path / 'fourth', quiet=True)
