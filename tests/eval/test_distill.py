"""Distillation: exponential sums are found again, errors fall with modes, and a distilled model reads and generates within its own error."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab import launch
from ssmlab.core.params import init
from ssmlab.data import Data, Text
from ssmlab.eval.distill import distill, fit, order, singular_values
from ssmlab.eval.generate import generate
from ssmlab.layers.filters import (
  DiagonalSSM,
  ExplicitFilter,
  ImplicitFilter,
  ModalFilter,
)
from ssmlab.mixers.h3 import H3
from ssmlab.mixers.hyena import Hyena
from ssmlab.mixers.longconv import LongConv
from ssmlab.mixers.mingru import MinGRU
from ssmlab.models import LM
from ssmlab.train import workdir
from ssmlab.train.experiment import Experiment, Train

RANDOM = np.random.default_rng(0)


def sum_of_exponentials(length, modes, channels):
  rate, angle = np.exp(RANDOM.uniform(np.log(0.01), np.log(0.5), (modes, channels))), RANDOM.uniform(0, np.pi, (modes, channels))
  residue = RANDOM.normal(size=(modes, channels)) + 1j * RANDOM.normal(size=(modes, channels))
  h = (residue * np.exp(np.arange(length)[:, None, None] * (1j * angle - rate))).real.sum(axis=1)
  h[0] += RANDOM.normal(size=channels)
  return h


def smooth(length=128, channels=6):
  """What a trained implicit filter is like: a few waves under an exponential window, which no few exponentials are exactly."""
  t = np.linspace(0, 1, length)[:, None]
  random = np.random.default_rng(1)
  waves = sum(np.sin(3 * k * (t + 0.3 * np.sin(4 * t)) + random.uniform(0, 6, channels)) / (1 + k) for k in range(6))
  return waves * np.exp(-t * np.linspace(3, 12, channels))


def errors(h, modes):
  found = np.asarray(ModalFilter(modes=modes).taps(fit(h, modes), len(h)))
  return np.linalg.norm(found - h, axis=0) / np.linalg.norm(h, axis=0)


def by_definition(h):
  """Singular values of the Hankel matrix itself."""
  half = len(h) // 2
  index = 1 + np.arange(half)[:, None] + np.arange(half)
  return np.stack([np.linalg.svd(h[index, c], compute_uv=False) for c in range(h.shape[1])])


def test_an_exponential_sum_is_found_again_with_its_order():
  h = sum_of_exponentials(300, 3, 5)
  assert order(h, 1e-4) == 3
  assert errors(h, 3).max() < 3e-5 and errors(h, 2).max() > 1e-2
  assert errors(h, 5).max() < 3e-5                           # more than it has do no harm
  np.testing.assert_allclose(np.asarray(ModalFilter(modes=2).taps(fit(h, 2), 300))[0], h[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('length', [16, 129, 300])
def test_hankel_singular_values(length):
  h = np.concatenate([smooth(length, 3), sum_of_exponentials(length, 2, 2)], axis=1)
  values, rest = singular_values(h, 12)
  exact = by_definition(h)
  np.testing.assert_allclose(values[:, :6], exact[:, :12][:, :6], rtol=1e-6, atol=1e-9)
  np.testing.assert_allclose(rest, (exact[:, 12:] ** 2).sum(axis=1), atol=1e-6 * (exact ** 2).sum(axis=1).max())


def test_the_error_falls_with_modes_and_the_order_with_the_error():
  h = smooth()
  found = [errors(h, modes) for modes in (1, 2, 4, 8)]
  assert np.median(found[0]) > 2 * np.median(found[1]) > 10 * np.median(found[2]) and found[3].max() < 1e-3
  chosen = [order(h, error) for error in (0.3, 0.1, 0.01)]
  assert chosen == sorted(chosen) and chosen[0] < chosen[-1]
  exact = by_definition(h)
  left = lambda modes: (np.linalg.norm(exact[:, 2 * modes:], axis=1) / np.linalg.norm(exact, axis=1)).max()
  for error, modes in zip((0.3, 0.1, 0.01), chosen):
    assert left(modes) <= error < left(modes - 1)            # the rule itself


def model(mixer, depth=3, **options):
  return LM(vocab=256, width=8, pattern=(mixer, MinGRU(expand=1.0)), depth=depth, **options)


FILTERS = {'implicit': Hyena(ImplicitFilter(l_max=64, emb_dim=5, width=8, frequency=3.0), order=3), 'heads': Hyena(ExplicitFilter(l_max=64), heads=2),
           'explicit': LongConv(ExplicitFilter(l_max=64)), 'ssm': LongConv(DiagonalSSM(state=4)), 'H3': H3(state=4, head_dim=2)}


@pytest.mark.parametrize('name', FILTERS)
def test_every_kind_of_filter_becomes_a_state_of_constant_size(name):
  before = model(FILTERS[name])
  params = init(jax.random.key(1), before.params())
  after, found, report = distill(before, params, modes=4, length=48)
  jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), found, after.shapes())
  assert [row['layer'] for row in report] == [0, 2] and all(0 <= row['median'] <= row['worst'] and row['modes'] == 4 for row in report)
  assert after.max_length is None and after.state_bytes(10) == after.state_bytes(10_000)
  for layer, row in zip((0, 2), report):                     # the reported error is the filters'
    old, new = (m.layers(p)[layer]['mixer']['filter'] for m, p in ((before, params), (after, found)))
    length = FILTERS[name].max_length or 48
    h, other = np.asarray(FILTERS[name]._filter.taps(old, length)), np.asarray(after.blocks[layer].mixer._filter.taps(new, length))
    relative = np.linalg.norm(other - h, axis=0) / np.linalg.norm(h, axis=0)
    np.testing.assert_allclose([relative.max(), np.median(relative)], [row['worst'], row['median']], rtol=1e-3, atol=3e-5)
  assert name != 'ssm' or max(row['worst'] for row in report) < 1e-4        # a sum of two already


def test_generation_is_the_full_forward_s_within_the_reported_error():
  """|sum_j (h' - h)[t - j] u[j]| <= |h' - h| |u| for every filter, so a mixer's change is bounded by the report."""
  before = LongConv(ExplicitFilter(l_max=128))
  net = LM(vocab=32, width=6, pattern=(before,), depth=1)
  params = init(jax.random.key(0), net.params())
  params['blocks']['0']['mixer']['filter']['k'] = jnp.asarray(smooth(128, 6))[None]
  after, found, (row,) = distill(net, params, modes=3)
  u = jnp.asarray(RANDOM.normal(size=(2, 128, 6)), jnp.float32)
  kernels = params['blocks']['0']['mixer']['filter'], found['blocks']['0']['mixer']['filter']
  one = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
  full, _ = before._filter.apply(one(kernels[0]), u)
  new = after.blocks[0].mixer._filter
  step = jax.jit(lambda u, state: new.apply(one(kernels[1]), u, state))
  state, streamed = new.init_state(6, 2, 1), []
  for t in range(128):
    y, state = step(u[:, t:t + 1], state)
    streamed.append(y)
  change = np.abs(np.concatenate(streamed, axis=1) - full)
  bound = row['worst'] * np.linalg.norm(before._filter.taps(one(kernels[0]), 128), axis=0) * np.linalg.norm(u, axis=1)[:, None]
  assert 0.01 < row['worst'] < 0.5 and (change <= bound + 1e-5).all() and change.max() > 1e-4
  tokens, _ = generate(after, found, [[1, 2, 3]], 200, temperature=0.0)       # past l_max
  assert tokens.shape == (1, 200)
  logits = lambda m, p: np.asarray(m.apply(p, jnp.asarray(tokens[:, :128]))[0])
  assert np.abs(logits(after, found) - logits(net, params)).max() < row['worst'] * np.abs(logits(net, params)).max()


def trained(folder):
  """A workdir as a run leaves it."""
  text = folder / 'text.txt'
  text.write_text('the cat sat on the mat. ' * 20)
  net = LM(vocab=256, width=8, pattern=(Hyena(ImplicitFilter(l_max=64, emb_dim=5, width=8, frequency=2.0)),), depth=1)
  experiment = Experiment(model=net, data=Data(source=Text(str(text), valid=str(text)), length=32, batch_size=2), train=Train(steps=3))
  workdir.save(experiment, init(jax.random.key(0), net.params()), 3, folder / 'run')
  return folder / 'run'


def test_the_command(tmp_path, capsys):
  run, out = trained(tmp_path), tmp_path / 'out'
  launch.main(['distill', str(run), '-o', str(out), '--modes', '6'])
  printed = capsys.readouterr().out
  assert 'worst' in printed and 'a change of' in printed
  written = json.loads((out / 'distill.json').read_text())
  experiment, params, step = workdir.load(out)
  assert step == 3 and experiment.model.blocks[0].mixer._filter == ModalFilter(modes=6, by_fft=True) and len(written['layers']) == 1
  launch.main(['eval', str(out), '-o', str(tmp_path / 'eval.json')])
  loss = json.loads((tmp_path / 'eval.json').read_text())['valid/loss']
  np.testing.assert_allclose(loss, written['loss']['distilled'], rtol=1e-5)
  launch.main(['sample', str(out), '--prompt', 'the', '--tokens', '80'])     # past l_max
  for arguments, said in ((['--modes', '0'], 'modes=0 must be at least 1'), (['--error', '2'], 'error=2.0 must be'), ([], 'already holds a run')):
    with pytest.raises(SystemExit) as caught:
      launch.main(['distill', str(run), '-o', str(out if not arguments else tmp_path / 'other'), *arguments])
    shown = capsys.readouterr().err
    assert caught.value.code == 2 and said in shown and shown.count('\n') == 1


def test_what_cannot_be_distilled():
  with pytest.raises(ValueError, match='no long filter to distil; its mixers are MinGRU'):
    net = LM(vocab=8, width=4, pattern=(MinGRU(expand=1.0),), depth=1)
    distill(net, init(jax.random.key(0), net.params()))
  noise = RANDOM.normal(size=(600, 2))
  with pytest.raises(ValueError, match='64 modes leave 0.* of a filter'):
    order(noise, 0.01)
  with pytest.raises(ValueError, match='3 taps'):
    fit(noise[:3], 2)
