"""BrierLM against exact values: all samples of a Markov chain weighed by their probabilities, and a small language model's by enumeration."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core import mesh as meshes
from ssmlab.core.params import init
from ssmlab.data import Bytes, Data, Text
from ssmlab.eval import brier
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Head
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.mingru import MinGRU
from ssmlab.models import CALM, LM
from ssmlab.models.calm import Autoencoder, EnergyHead
from ssmlab.tasks import NextVector
from ssmlab.train import Experiment

VOCAB = 3
MODELS = {name: LM(vocab=VOCAB, width=8, pattern=(mixer,), depth=2, channel=GatedMLP(16), head=Head(size=0.5))
          for name, mixer in (('recurrent', MinGRU(expand=1.0)), ('attention', Attention(heads=2, head_dim=4)))}
IDS = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1, 0, 0, 0]], np.int32)


def batch_of(ids=IDS):
  """Random tokens; targets within documents, the last one an end (0)."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, VOCAB, ids.shape).astype(np.int32)
  follows = np.pad(ids[:, 1:], ((0, 0), (0, 1))) == ids
  targets = np.where(ids == 0, -1, np.where(follows, np.roll(tokens, -1, axis=1), 0)).astype(np.int32)
  return dict(tokens=tokens, targets=targets, segment_ids=ids)


@functools.cache
def truth_and_exact(name):
  """Brier-n of every window by enumeration of all n-grams after its document's prefix, nan where there are no n targets; float64 [2, 10, 4]."""
  model, batch = MODELS[name], batch_of()
  params = init(jax.random.key(1), model.params())
  grams = np.array(list(itertools.product(range(VOCAB), repeat=4)), np.int32)
  apply = jax.jit(lambda tokens, ids: jax.nn.log_softmax(model.apply(params, tokens, segment_ids=ids)[0]))
  found = np.full((*IDS.shape, 4), np.nan)
  for row, at in zip(*np.nonzero(IDS)):
    document = np.flatnonzero(IDS[row] == IDS[row, at])
    prefix = batch['tokens'][row, document[0]:at + 1]
    tokens = np.zeros((len(grams), 14), np.int32)
    tokens[:, :len(prefix)], tokens[:, len(prefix):len(prefix) + 4] = prefix, grams
    log_p = np.asarray(apply(tokens, np.ones_like(tokens)), np.float64)[:, len(prefix) - 1:len(prefix) + 3]
    p = np.exp(np.cumsum(np.take_along_axis(log_p, grams[..., None], axis=-1)[..., 0], axis=1))
    for n in range(1, min(4, document[-1] - at + 1) + 1):
      alike = np.all(grams[:, :n] == batch['targets'][row, at:at + n], axis=1)
      repeats = VOCAB ** (4 - n)                             # 4-grams that begin with the same n-gram
      found[row, at, n - 1] = 2 * p[alike, n - 1].mean() - np.sum(p[:, n - 1] ** 2) / repeats
  return params, found


@pytest.mark.parametrize('form', ['exact', 'sampled'])
@pytest.mark.parametrize('name', list(MODELS))
def test_both_forms_are_unbiased_after_every_prefix(name, form):
  """5 standard errors over about 60 numbers: a false alarm of 4e-5 for a seed drawn anew."""
  params, truth = truth_and_exact(name)
  model, batch, count = MODELS[name], batch_of(), 3000

  def one(key):
    if form == 'exact':
      return brier.exact(model, params, batch, key)
    windows = brier.sampled(model, params, batch, key)
    return brier.estimate(windows), windows.truth
  run = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=250))
  found, targets = map(np.asarray, run(jax.random.split(jax.random.key(2), count)))
  found = found.astype(np.float64)                           # float32 would lose more in the mean than it is compared by
  here = np.cumprod(targets[0] >= 0, axis=-1) > 0
  np.testing.assert_array_equal(here, np.isfinite(truth))
  mean, error = found.mean(axis=0)[here], found.std(axis=0)[here] / np.sqrt(count)
  assert np.all(np.abs(mean - truth[here]) < 5 * error + 2e-6)
  if form == 'exact':
    np.testing.assert_allclose(found[:, ..., 0][:, here[..., 0]], np.broadcast_to(truth[..., 0][here[..., 0]], (count, here[..., 0].sum())), atol=2e-6)
  else:
    assert set(np.unique(found)) <= {-1, 0, 1} and error.max() < 0.02


def test_exact_has_less_noise():
  params, _ = truth_and_exact('recurrent')
  keys, batch, model = jax.random.split(jax.random.key(3), 300), batch_of(), MODELS['recurrent']
  noise = lambda one: np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=300))(keys)).std(axis=0)[0, 0]
  low = noise(lambda key: brier.exact(model, params, batch, key)[0])
  assert np.all(low < 0.2 * noise(lambda key: brier.estimate(brier.sampled(model, params, batch, key))))


@pytest.mark.parametrize('stride', [2, 3])
def test_a_stride_is_a_choice_of_windows(stride):
  """Brier-1 has no noise: it must be that of the windows 0, stride, 2 stride, ...; so must the accuracy term, of which the truth says where."""
  params, truth = truth_and_exact('attention')
  found, targets = brier.exact(MODELS['attention'], params, batch_of(), jax.random.key(0), stride)
  want = truth[:, ::stride]
  assert found.shape == want.shape
  here = np.isfinite(want)
  np.testing.assert_array_equal(np.cumprod(targets >= 0, axis=-1) > 0, here)
  np.testing.assert_allclose(np.asarray(found)[..., 0][here[..., 0]], want[..., 0][here[..., 0]], atol=2e-6)


def test_chunks_below_four_tokens():
  """K = 2: accuracy from the teacher-forced draws of both chunks, collision from the path; K = 1 has three onward draws."""
  truth = np.array([[[1, 2], [3, 4], [5, 6]]])
  first, second = np.array([[[1, 2], [3, 0], [5, 6]]]), np.array([[[1, 0], [3, 4], [5, 6]]])
  onward = np.array([[[[7, 7]], [[5, 6]]]]), np.array([[[[7, 7]], [[5, 0]]]])
  windows = brier.chunk_windows(truth, first, second, onward)
  np.testing.assert_array_equal(windows.truth, [[[1, 2, 3, 4], [3, 4, 5, 6]]])
  np.testing.assert_array_equal(windows.paths[0], [[[1, 2, 7, 7], [3, 0, 5, 6]]])
  np.testing.assert_array_equal(brier.estimate(windows), [[[1, 1, 1, 0], [1, 1, 1, 1]]])
  one = lambda x: x.reshape(1, 6, 1)
  ones = brier.chunk_windows(one(truth), one(first), one(second), (np.zeros((1, 3, 3, 1), int),) * 2)
  assert ones.truth.shape == (1, 3, 4) and ones.paths[0].shape == (1, 3, 4)
  with pytest.raises(ValueError, match='chunks of 2 tokens'):
    brier.chunk_windows(truth, first, second)


def test_score():
  assert brier.brierlm(np.ones(4)) == 100 and brier.brierlm(np.array([0.5, 0.5, -0.1, -0.1])) == 0
  np.testing.assert_allclose(brier.brierlm(np.array([0.2181, 0.0688, 0.0259, 0.0125])), 4.70, atol=0.01)      # the paper's table 5


def test_interval_covers():
  """95% of 200 experiments: between 88% and 99% of the intervals hold the true value."""
  rng, hits, p = np.random.default_rng(0), 0, np.array([0.5, 0.4, 0.3, 0.2])
  for seed in range(200):
    sums = rng.binomial(30, p, size=(60, 4)).astype(float)
    low, high = brier.interval(sums, np.full((60, 4), 30.0), seed, replicates=300)
    hits += low < brier.brierlm(p) < high
  assert 0.88 < hits / 200 < 0.99


@dataclasses.dataclass(frozen=True)
class Chunked:
  """A chain of chunks: after a chunk the next is drawn from a law that its last token chooses; x is that token, `laws` [2, 2 ** K]."""
  chunk: int

  max_length = None

  def init_state(self, batch, max_length):
    return dict(hidden=jnp.zeros((batch, 1)))

  def hidden(self, params, tokens, state=None, segment_ids=None):
    x = tokens[:, self.chunk - 1::self.chunk, None].astype(jnp.float32)
    return x, None if state is None else dict(hidden=x[:, -1])

  def draw(self, params, x, key):
    drawn = jax.random.categorical(key, jnp.log(params['laws'])[x[..., 0].astype(jnp.int32)])
    return drawn[..., None] >> jnp.arange(self.chunk) & 1

  def for_generation(self, length):
    return self, lambda params: params


@pytest.mark.parametrize('chunk', [1, 2, 4, 8])
def test_a_model_that_draws_chunks(chunk):
  """Against the law of every window, for chunks in documents that do not begin with a row; 5 standard errors."""
  laws = np.random.default_rng(chunk).dirichlet(np.ones(2 ** chunk), 2)
  ids = np.array([[1] * 16 + [2] * 16, [1] * 10 + [2] * 14 + [0] * 8], np.int32)
  batch = batch_of(ids)
  batch = batch | dict(tokens=batch['tokens'] % 2, targets=np.where(batch['targets'] > 1, 0, batch['targets']))
  run = jax.jit(lambda key: brier.sampled(Chunked(chunk), dict(laws=jnp.asarray(laws, jnp.float32)), batch, key))
  truth = np.asarray(run(jax.random.key(0)).truth)
  windows = jax.jit(jax.vmap(lambda key: brier.estimate(run(key))))(jax.random.split(jax.random.key(0), 4000))
  found, scored = np.asarray(windows, np.float64), 0
  for row, at in itertools.product(range(2), range(32 // chunk)):
    begin = (at + 1) * chunk
    count = int(np.cumprod(truth[row, at] >= 0).sum())
    alike = begin < 32 and ids[row, begin] == ids[row, at * chunk] > 0
    assert count == (min(4, np.sum(ids[row, begin - 1:] == ids[row, at * chunk])) if alike else 0)
    law = {(int(batch['tokens'][row, begin - 1]),): 1.0}
    for _ in range(-(-4 // chunk)):                          # bits so far -> probability
      law = {(*bits, *((code >> i) & 1 for i in range(chunk))): p * laws[bits[-1], code] for bits, p in law.items() for code in range(2 ** chunk)}
    for n in range(1, count + 1):
      short = {}
      for bits, p in law.items():
        short[bits[1:n + 1]] = short.get(bits[1:n + 1], 0) + p
      want = 2 * short[tuple(int(x) for x in truth[row, at, :n])] - sum(p * p for p in short.values())
      values = found[:, row, at, n - 1]
      assert abs(values.mean() - want) < 5 * values.std() / np.sqrt(len(values)) + 1e-9
      scored += 1
  assert scored > 4


@pytest.fixture
def experiment(tmp_path):
  (tmp_path / 'text.txt').write_text('the cat sat on the mat. ' * 40)
  model = LM(vocab=256, width=16, pattern=(MinGRU(expand=1.0),), depth=1, channel=GatedMLP(16))
  return Experiment(model=model, data=Data(Text(str(tmp_path / 'text.txt'), valid=str(tmp_path / 'text.txt')), Bytes(), length=32, batch_size=4))


def test_evaluator(experiment):
  params, mesh = init(jax.random.key(0), experiment.model.params()), meshes.make()
  found = brier.BrierLM(final_max_tokens=200).run(experiment, mesh, params, final=True)
  assert found['windows'] == 256 and 0 <= found['low'] <= found['brierlm'] <= found['high'] and found['brier_1'] < 0.1
  again = brier.BrierLM(form='sampled', final_max_tokens=200).run(experiment, mesh, params, final=True)
  assert set(again) == set(found) and abs(again['brier_1'] - found['brier_1']) < 0.1
  assert brier.BrierLM(final_max_tokens=200).run(experiment, mesh, params, final=True) == found


def test_evaluator_of_chunks(experiment):
  chunked = dataclasses.replace(experiment, model=Chunked(4))
  found = brier.BrierLM(max_tokens=100).run(chunked, meshes.make(), dict(laws=jnp.full((256, 16), 1 / 16)), final=False)
  assert found['windows'] == 4 * 7 - 2 and found['brierlm'] == 0      # two documents end in a chunk; bits are not this text
  with pytest.raises(ValueError, match="Chunked draws chunks: form='exact'"):
    brier.BrierLM(form='exact').run(chunked, meshes.make(), {}, final=False)


def test_calm(experiment):
  """Its head starts at zero: two samples are the same, and not the text."""
  model = CALM(vocab=256, width=16, pattern=(MinGRU(expand=1.0),), depth=1, channel=GatedMLP(16), head=EnergyHead(blocks=1),
               autoencoder=Autoencoder(vocab=256, width=16, hidden=16, latent=8, chunk=2))
  other = dataclasses.replace(experiment, model=model, task=NextVector())
  found = brier.BrierLM(max_tokens=100).run(other, meshes.make(), init(jax.random.key(0), model.params()), final=False)
  assert found['windows'] == 58 and [found[f'brier_{n}'] for n in range(1, 5)] == [-1] * 4


def test_what_is_refused():
  with pytest.raises(ValueError, match="form='beam' is not one of auto, exact, sampled"):
    brier.BrierLM(form='beam')
  with pytest.raises(ValueError, match='stride=0 must be at least 1'):
    brier.BrierLM(stride=0)
