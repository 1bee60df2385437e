"""Masked words: which tokens are chosen, what stands in their place, the loss against a plain computation, and a run of the one loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmlab
from ssmlab.core.config import UserError
from ssmlab.data import Bytes, Data, Documents, Text
from ssmlab.eval import HeldOut, Padding
from ssmlab.layers.channel import MLP
from ssmlab.layers.embedding import Embedding
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.attention import Attention
from ssmlab.tasks import MaskedLM
from ssmlab.train import AdamW, Experiment, Train, loop

MASK, VOCAB, ROWS, TIME = 256, 320, 256, 128
MODEL = ssmlab.Encoder(VOCAB, 16, (Attention(2, 8, causal=False, alibi=True, rotary_fraction=0.0),), 1, MLP(24),
                       embedding=Embedding(norm=LayerNorm(1e-12)), embedding_dropout=0.2)


def made(rows=ROWS):
  """Documents of random letters, two in a row, with [CLS] and padding; words of three tokens."""
  random = np.random.default_rng(0)
  tokens, ids = random.integers(97, 123, (rows, TIME)), np.ones((rows, TIME), np.int32)
  ids[:, 70:], ids[:, 120:] = 2, 0
  targets = np.where(ids == 0, -1, tokens)
  targets[:, [0, 70]] = -1
  words = np.tile(np.arange(TIME) // 3, (rows, 1))
  return {name: jnp.asarray(value, jnp.int32) for name, value in dict(tokens=tokens, targets=targets, segment_ids=ids, words=words).items()}


def hidden(task, batch, ratio, seed=0):
  tokens, places, targets = task.hide(batch, jax.random.key(seed), ratio, VOCAB)
  return np.asarray(tokens), np.asarray(places), np.asarray(targets)


def test_ratio_and_what_stands_there():
  batch, task = made(), MaskedLM(MASK)
  for ratio in (0.15, 0.3):
    tokens, places, targets = hidden(task, batch, ratio)
    chosen, original = targets >= 0, np.take_along_axis(np.asarray(batch['tokens']), places, axis=1)
    allowed = np.asarray(batch['targets']) >= 0
    assert abs(chosen.sum() / allowed.sum() / ratio - 1) < 0.05
    assert np.take_along_axis(allowed, places, axis=1)[chosen].all() and (targets[chosen] == original[chosen]).all()
    after = np.take_along_axis(tokens, places, axis=1)[chosen]
    assert abs((after == MASK).mean() - 0.8) < 0.02 and abs((after == original[chosen]).mean() - 0.1) < 0.02
    untouched = np.ones_like(tokens, bool)
    np.put_along_axis(untouched, places, ~chosen, axis=1)
    assert (tokens == batch['tokens'])[untouched].all()


def test_all_mask_and_range_of_random_ids():
  batch = made()
  tokens, places, targets = hidden(MaskedLM(MASK, random=0.0, kept=0.0), batch, 0.3)
  assert (np.take_along_axis(tokens, places, axis=1)[targets >= 0] == MASK).all()
  tokens, places, targets = MaskedLM(MASK, random=1.0, kept=0.0).hide(batch, jax.random.key(0), 0.3, 5)
  assert set(np.take_along_axis(np.asarray(tokens), np.asarray(places), axis=1)[np.asarray(targets) >= 0]) == set(range(5))


def test_masks_are_the_keys():
  batch, task = made(), MaskedLM(MASK)
  one, again, other = (hidden(task, batch, 0.3, seed)[0] for seed in (0, 0, 1))
  assert (one == again).all() and (one != other).any()


def test_whole_words():
  """All tokens of a word or none; a row that runs out of slots may cut one."""
  batch = made()
  task = MaskedLM(MASK, random=0.0, kept=0.0, whole_words=True)
  tokens, _, targets = hidden(task, batch, 0.3)
  share = (tokens == MASK)[:, 3:69].reshape(ROWS, -1, 3).mean(axis=-1)       # words away from [CLS]
  cut = ((share > 0) & (share < 1)).any(axis=1)
  full = (targets >= 0).all(axis=1)
  assert not cut[~full].any() and cut.sum() <= full.sum() < ROWS / 4 and abs((targets >= 0).sum() / (np.asarray(batch['targets']) >= 0).sum() / 0.3 - 1) < 0.15


def test_few_slots_hide_no_side_of_the_row():
  """The lowest draws get the slots, so that where a row has too many the left is not preferred."""
  batch = made()
  task = MaskedLM(MASK, random=0.0, kept=0.0)
  object.__setattr__(task, 'slots', lambda time, ratio: 8)
  tokens, _, targets = hidden(task, batch, 0.9)
  assert (targets >= 0).all()
  where = np.nonzero(tokens == MASK)[1]
  assert abs(where.mean() / 59.5 - 1) < 0.1


def test_loss_is_the_plain_one():
  """Over all positions, from the full logits; held-out loss has no dropout and its own ratio."""
  batch, task, key = made(4), MaskedLM(MASK, ratio=0.4, held_out_ratio=0.2), jax.random.key(5)
  params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), ssmlab.init(jax.random.key(0), MODEL.params()))
  draw, dropout = jax.random.split(key)
  for measure, ratio, draw, dropout in ((task.loss, 0.4, draw, dropout), (task.held_out, 0.2, key, None)):
    total, (count, sums) = jax.jit(lambda params, batch, measure=measure: measure(MODEL, params, batch, key))(params, batch)
    tokens, places, targets = task.hide(batch, draw, ratio, VOCAB)
    labels = np.full((4, TIME + 1), -1)
    np.put_along_axis(labels, np.where(targets >= 0, places, TIME), np.asarray(targets), axis=1)
    logits, _ = MODEL.apply(params, tokens, None, batch['segment_ids'], key=dropout)
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels[:, :TIME], 0)[..., None], axis=-1)[..., 0]
    expected = float(jnp.sum(nats * (labels[:, :TIME] >= 0)))
    assert float(total) == pytest.approx(expected, rel=1e-5) and int(count) == (labels >= 0).sum() and float(sums['tokens']) == 4 * 120


@pytest.mark.parametrize('change, message', [(dict(ratio=0.0), 'ratio=0.0 must be above 0'), (dict(random=0.6, kept=0.5), 'together at most 1')])
def test_refusals(change, message):
  with pytest.raises(ValueError, match=message):
    MaskedLM(MASK, **change)


def test_the_one_loop(tmp_path, monkeypatch):
  """Short documents, packed: the loss falls, tokens are those that were read, the same seed gives the same run; plain Data is refused."""
  monkeypatch.setenv('SSMLAB_CACHE', str(tmp_path / 'cache'))
  (tmp_path / 'text.txt').write_text(''.join(f'the cat {n} sat on mat\n' for n in range(400)))
  data = Documents(Text(str(tmp_path / 'text.txt'), piece=25), Bytes(), length=64, batch_size=8, most=48)
  experiment = Experiment(MODEL, data, MaskedLM(MASK), AdamW(peak_lr=1e-2, warmup_steps=5), Train(steps=20, log_every=10, checkpoint_every=0),
                          evals=(('valid', HeldOut()), ('padding', Padding())))
  first = loop.run(experiment, tmp_path / 'a', quiet=True)
  again = loop.run(experiment, tmp_path / 'b', quiet=True)
  assert first['valid/loss'] == again['valid/loss'] < 3.5 and 'valid/bits_per_byte' not in first and first['state_bytes'] is None
  assert 0 < first['padding/wasted_packed'] < first['padding/wasted_unpacked'] < 1
  assert 20 * 8 * 64 * (0.9 - first['padding/wasted_packed']) < first['tokens'] <= 20 * 8 * 64
  with pytest.raises(UserError, match='MaskedLM predicts tokens, but the targets of Data are next tokens'):
    loop.run(dataclasses.replace(experiment, data=Data(data.source, Bytes(), 64, 8)), tmp_path / 'c', quiet=True)
