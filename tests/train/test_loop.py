"""The loop in one process: it learns, leaves what it should, resumes exactly, and stops on what is not finite."""

import csv
import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest

from ssmlab.core import mesh as meshes
from ssmlab.core.config import UserError, override
from ssmlab.eval.heldout import place
from ssmlab.train import loop, metrics, workdir
from ssmlab.train.experiment import quick


@pytest.fixture(scope='module')
def finished(text, tmp_path_factory):
  """A run to its end: (experiment, workdir, summary)."""
  from tests.train.conftest import tiny
  experiment, path = tiny(text), tmp_path_factory.mktemp('runs') / 'whole'
  return experiment, path, loop.run(experiment, path, quiet=True)


def same(a, b):
  chex.assert_trees_all_equal(*(jax.tree.map(np.asarray, x) for x in (a, b)))


def test_it_learns_and_the_summary_says_so(finished):
  experiment, path, summary = finished
  rows = metrics.read(path / 'metrics.jsonl')
  losses = [row['train/loss'] for row in rows if 'train/loss' in row]
  assert len(losses) == 12 and losses[-1] < losses[0] - 1
  assert summary['valid/loss'] < losses[0] - 1
  assert summary['valid/bits_per_byte'] == pytest.approx(summary['valid/loss'] / np.log(2), rel=0.1)      # one byte a token, but for ends
  assert summary['tokens'] == 12 * 4 * 32 and summary['parameters'] == experiment.model.size()
  assert json.loads((path / 'summary.json').read_text()) == summary


def test_the_workdir_holds_what_is_promised(finished):
  experiment, path, _ = finished
  names = {p.name for p in path.iterdir()}
  assert {'config.py', 'environment.json', 'metrics.jsonl', 'metrics.csv', 'tensorboard', 'checkpoints', 'loss.png', 'summary.json'} <= names
  assert workdir.open_config(path) == experiment
  about = json.loads((path / 'environment.json').read_text())
  assert about['versions']['jax'] == jax.__version__ and len(about['data']['train']['sha256']) == 64
  rows = metrics.read(path / 'metrics.jsonl')
  assert {'step', 'tokens', 'tokens_per_second', 'flops_per_second', 'grad_norm', 'lr', 'train/accuracy'} <= set(rows[0])
  assert [row['step'] for row in rows if 'valid/loss' in row] == [4, 8, 12]
  with (path / 'metrics.csv').open() as file:
    table = list(csv.DictReader(file))
  assert [float(r['train/loss']) for r in table if r['train/loss']] == [r['train/loss'] for r in rows if 'train/loss' in r]
  assert (path / 'loss.png').read_bytes()[:4] == b'\x89PNG'


def test_a_run_without_its_last_checkpoint_ends_bit_for_bit_the_same(finished, tmp_path):
  experiment, path, _ = finished
  _, params, step = workdir.load(path)
  assert step == 12
  loop.run(override(experiment, 'train.keep', 3), tmp_path / 'r', quiet=True)
  shutil.rmtree(tmp_path / 'r' / 'checkpoints' / '12')
  before = metrics.read(tmp_path / 'r' / 'metrics.jsonl')
  loop.run(override(experiment, 'train.keep', 3), tmp_path / 'r', quiet=True)
  same(workdir.load(tmp_path / 'r')[1], params)
  after = metrics.read(tmp_path / 'r' / 'metrics.jsonl')
  assert [(r['step'], r.get('train/loss')) for r in after] == [(r['step'], r.get('train/loss')) for r in before]


def test_best_and_last_are_kept(finished):
  _, path, _ = finished
  rows = [row for row in metrics.read(path / 'metrics.jsonl') if 'valid/loss' in row]
  best = min(rows, key=lambda row: row['valid/loss'])['step']
  assert {int(p.name) for p in (path / 'checkpoints').iterdir() if p.name.isdigit()} == {best, 12}


def test_micro_batches_are_the_whole_batch(experiment):
  batch = next(experiment.data.train_batches())
  after = []
  for accumulate in (1, 2, 4):
    changed = override(experiment, 'train.accumulate', accumulate)
    mesh = meshes.make(changed.mesh)
    pieces = loop.trainer(changed, mesh)
    after.append(pieces.compiled()(pieces.fresh(0), place(batch, mesh)))
  for state, measured in after[1:]:
    assert float(measured['loss']) == pytest.approx(float(after[0][1]['loss']), rel=1e-6)
    assert float(measured['grad_norm']) == pytest.approx(float(after[0][1]['grad_norm']), rel=1e-5)
    chex.assert_trees_all_close(state.params, after[0][0].params, atol=1e-4)           # Adam's first step is a sign, which amplifies rounding


def test_memory_does_not_grow_over_steps(experiment):
  mesh = meshes.make(experiment.mesh)
  pieces, batches, counts = loop.trainer(experiment, mesh), experiment.data.train_batches(), []
  step, state = pieces.compiled(), pieces.fresh(0)
  for _ in range(6):
    state, measured = step(state, place(next(batches), mesh))
    jax.block_until_ready(measured)
    counts.append(sum(a.nbytes for a in jax.live_arrays()))
  assert counts[2:] == [counts[2]] * 4


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_layer(experiment, tmp_path):
  exploding = override(override(experiment, 'optim.peak_lr', 1e30), 'train.checkpoint_every', 1)
  with pytest.raises(UserError, match=r'step \d+: loss .* not finite, first in (block 0 \(RGLRU\)|block 1 \(RGLRU\)|head|embedding); '):
    loop.run(exploding, tmp_path / 'r', quiet=True)
  _, params, step = workdir.load(tmp_path / 'r')
  assert step >= 1 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_another_model_is_refused(finished):
  experiment, path, _ = finished
  with pytest.raises(UserError, match=r'run of another model \(model.width is 16 there and 24 here\)'):
    loop.run(override(experiment, 'model.width', 24), path, quiet=True)


@pytest.mark.parametrize('field, value, message', [
    ('data.batch_size', 3, 'data.batch_size=3 is not a multiple of 2'), ('model.vocab', 100, 'model.vocab is 100'),
    ('data.source.path', '/nowhere/at/all.txt', '/nowhere/at/all.txt'), ('mesh.tensor', 2, 'there are 1 devices')])
def test_what_no_part_can_see_alone(experiment, tmp_path, field, value, message):
  changed = override(override(experiment, 'train.accumulate', 2), field, value)
  with pytest.raises((UserError, ValueError), match=message):
    loop.run(changed, tmp_path / 'r', quiet=True)


def test_a_trace_of_chosen_steps(experiment, tmp_path):
  loop.run(override(override(experiment, 'train.profile', (2, 3)), 'train.steps', 3), tmp_path / 'r', quiet=True)
  assert list((tmp_path / 'r' / 'profile').rglob('*.xplane.pb'))


def test_quick_is_two_small_steps(experiment):
  small = quick(experiment, 1)
  assert (small.train.steps, small.data.batch_size, small.data.length) == (2, 1, 32)
  assert small.evals[0][1].final_max_tokens == 256 and small.model == experiment.model
  everything = override(experiment, 'evals.0.1.final_max_tokens', None)
  assert quick(everything, 1).evals[0][1].final_max_tokens == 256


def test_optimiser_follows_the_declarations(experiment):
  """No decay where none is declared, and a declared rate multiplies the update."""
  declared = experiment.model.params()
  still = dataclasses.replace(experiment.optim, weight_decay=0.5, clip=0.0)
  params = jax.tree.map(lambda s: np.ones(s.shape, np.float32), experiment.model.shapes())
  zero = jax.tree.map(np.zeros_like, params)
  tx = still.transform(declared, 12)
  updates, _ = tx.update(zero, tx.init(params), params)
  lr = float(still.schedule(12)(0))
  block = updates['blocks']['0']['mixer']
  np.testing.assert_allclose(block['w_x'], -0.5 * lr, rtol=1e-6)
  assert not block['b_x'].any() and not block['decay'].any() and not updates['norm']['scale'].any()


@pytest.mark.parametrize('decay, end', [('cosine', 0.1), ('linear', 0.1), ('constant', 1.0), ('stable', 0.1)])
def test_schedules(experiment, decay, end):
  rate = dataclasses.replace(experiment.optim, decay=decay, peak_lr=2.0, warmup_steps=10).schedule(100)
  assert float(rate(0)) == pytest.approx(0.2) and float(rate(9)) == pytest.approx(2.0) and float(rate(99)) == pytest.approx(2 * end)
  assert all(float(rate(i)) >= float(rate(i + 1)) - 1e-6 for i in range(9, 99))


def test_an_encoder_is_trained_and_has_no_state(text, tmp_path):
  """Blocks that read in both directions carry nothing: the table of costs and the summary say so instead of failing."""
  from ssmlab.mixers.bidirectional import Bidirectional
  from ssmlab.mixers.rglru import TINY
  from ssmlab.train.cost import costs
  from tests.train.conftest import tiny
  model = dataclasses.replace(tiny(text).model, pattern=(Bidirectional(TINY),), depth=1)
  experiment = dataclasses.replace(tiny(text), model=model)
  assert dict(costs(experiment))['state per sequence'].startswith('none')
  assert loop.run(experiment, tmp_path / 'r', quiet=True)['state_bytes'] is None
