"""Runs as processes: killed at any moment, SIGTERM, a full disk, and what the command line says to wrong input."""

import json
import pathlib
import random
import signal
import time

import chex
import jax
import numpy as np
import pytest

from ssmlab.core.config import UserError
from ssmlab.train import metrics, workdir
from tests.train.conftest import command


def parameters(path):
  _, params, step = workdir.load(path)
  return jax.tree.map(np.asarray, params), step


def wait_for(process, path: pathlib.Path, step: int) -> None:
  """Returns when the run has logged `step`, or has ended."""
  while process.poll() is None:
    rows = metrics.read(path / 'metrics.jsonl')
    if rows and rows[-1]['step'] >= step:
      return
    time.sleep(0.01)


def test_killed_ten_times_at_any_moment_it_ends_bit_for_bit_the_same(experiment_file, tmp_path, run):
  """Kills fall in start-up, between steps and while checkpoints are written; each is a SIGKILL."""
  settings = ('train.steps=60', 'train.checkpoint_every=2', 'evals.0.1.every=0')
  status, _, err = run(experiment_file, '--workdir', tmp_path / 'whole', *settings)
  assert status == 0, err
  expected, _ = parameters(tmp_path / 'whole')
  draw, path, reached = random.Random(0), tmp_path / 'killed', 0
  for kill in range(10):
    process = command(experiment_file, '--workdir', path, *settings)
    if kill % 5 == 4:
      time.sleep(draw.uniform(0.5, 4.0))                     # somewhere in start-up
    else:
      wait_for(process, path, reached + draw.randint(1, 6))
      time.sleep(draw.uniform(0.0, 0.05))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL             # it was running: every one of the ten is a real kill
    rows = metrics.read(path / 'metrics.jsonl') if path.exists() else []
    reached = max(reached, rows[-1]['step'] if rows else 0)
  status, out, err = run(experiment_file, '--workdir', path, *settings)
  assert status == 0 and 'resumed at step' in out, err
  found, step = parameters(path)
  assert step == 60
  chex.assert_trees_all_equal(found, expected)
  losses = lambda p: {r['step']: r['train/loss'] for r in metrics.read(p / 'metrics.jsonl') if 'train/loss' in r}
  assert losses(path) == losses(tmp_path / 'whole')


def test_sigterm_saves_and_the_same_command_goes_on(experiment_file, tmp_path, run):
  arguments = (experiment_file, '--workdir', tmp_path / 'r', 'train.steps=100000', 'train.checkpoint_every=0', 'evals=()')
  process = command(*arguments)
  wait_for(process, tmp_path / 'r', 5)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=120)
  assert process.returncode == 143 and 'SIGTERM: saved at step' in out, err
  _, _, step = workdir.load(tmp_path / 'r')
  assert f'saved at step {step} ' in out
  status, out, _ = run(experiment_file, '--workdir', tmp_path / 'r', f'train.steps={step + 3}', 'train.checkpoint_every=0', 'evals=()')
  assert status == 0 and f'resumed at step {step} of {step + 3} steps' in out


def test_a_full_disk_during_a_save_is_one_line_and_loses_nothing(experiment_file, tmp_path, run):
  """A limit on file sizes stands in for the full disk: writes fail in the middle of the second checkpoint."""
  arguments = (experiment_file, '--workdir', tmp_path / 'r', 'train.checkpoint_every=0', 'evals=()')
  assert run(*arguments, 'train.steps=4')[0] == 0
  before, _ = parameters(tmp_path / 'r')
  status, _, err = run(*arguments, 'train.steps=8', 'train.log_every=100', file_limit=6, env={'JAX_COMPILATION_CACHE_DIR': ''})
  assert status == 2 and err.count('\n') == 1, err
  assert 'could not be written' in err and 'the last complete one is step 4' in err
  after, step = parameters(tmp_path / 'r')
  assert step == 4
  chex.assert_trees_all_equal(after, before)
  assert run(*arguments, 'train.steps=8')[0] == 0 and parameters(tmp_path / 'r')[1] == 8


def test_launch_print_sample_and_eval(experiment_file, tmp_path, run):
  status, out, err = run(experiment_file, '--workdir', tmp_path / 'r', 'train.steps=40')
  assert status == 0 and err == '', err                      # nothing to explain
  assert 'loss' in out and 'tokens/s' in out and 'left' in out and 'valid/bits_per_byte' in out
  status, out, err = run(experiment_file, '--print', 'train.steps=77')
  assert status == 0 and 'steps=77' in out and 'def config():' in out
  assert all(name in out for name in ('parameters', 'FLOPs per token', 'state per sequence', 'memory per device'))
  status, out, err = run('sample', tmp_path / 'r', '--prompt', 'alpha ', '--tokens', '30', '--state', tmp_path / 's', '--temperature', '0')
  assert status == 0 and out.startswith('alpha ') and len(out) > 12 and err == '', err
  status, more, err = run('sample', tmp_path / 'r', '--tokens', '10', '--state', tmp_path / 's', '--temperature', '0')
  status, whole, _ = run('sample', tmp_path / 'r', '--prompt', 'alpha ', '--tokens', '40', '--temperature', '0')
  assert out.removesuffix('\n') + more == whole
  status, out, err = run('eval', tmp_path / 'r', '--suite', 'test', '-o', tmp_path / 'e.json')
  numbers = json.loads((tmp_path / 'e.json').read_text())
  assert status == 0 and numbers['test/bits_per_byte'] < 6 and 'test/perplexity' in out, err
  status, out, err = run('eval', tmp_path / 'r', '--suite', 'brier', '--max-tokens', '64', '-o', tmp_path / 'b.json')
  numbers = json.loads((tmp_path / 'b.json').read_text())
  assert status == 0 and 0 <= numbers['brier/low'] <= numbers['brier/brierlm'] <= numbers['brier/high'] and 'brier/brier_4' in out, err
  status, out, err = run('eval', tmp_path / 'r', f'{tmp_path}/r/', '--suite', 'diversity', '-o', tmp_path / 'd.csv')
  assert status == 0 and out.count('block 1') == 2 and (tmp_path / 'd.png').stat().st_size > 10_000, err
  status, out, err = run('eval', tmp_path / 'r', '--suite', 'draws')
  assert status == 2 and 'draws from probabilities' in err and err.count('\n') == 1


@pytest.mark.parametrize('old, new, words', [
    ('depth=2', 'depth=2, unroll=4', "unexpected keyword argument 'unroll'"), ('import LM', 'import LM, Gone', "cannot import name 'Gone'"),
    ("remat='block'", "remat='all'", "remat='all' is not one of none, block")])
def test_a_workdir_of_another_version_is_one_line(experiment, tmp_path, old, new, words):
  file = workdir.prepare(experiment, tmp_path) / 'config.py'
  assert file.read_text().count(old) == 1
  file.write_text(file.read_text().replace(old, new))
  for _ in range(2):
    with pytest.raises(UserError, match='config.py does not fit this version of ssmlab') as caught:
      workdir.open_config(tmp_path)
    assert words in str(caught.value) and str(caught.value).count('\n') == 0 and 'wrote it' in str(caught.value)


def test_sweep_runs_every_entry(experiment_file, tmp_path, run):
  status, out, err = run(experiment_file, '--sweep', '--workdir', tmp_path / 'r', 'train.steps=1', 'evals=()')
  assert status == 0, err
  assert [workdir.open_config(tmp_path / 'r' / str(i)).optim.peak_lr for i in range(2)] == [0.001, 0.002]
  assert '2 entries: mean and standard deviation' in out and 'seconds' in out.rsplit('2 entries')[1]
  table = (tmp_path / 'r' / 'sweep.csv').read_text().splitlines()
  assert [line.split(',')[:2] for line in table[1:]] == [['0', 'optim.peak_lr=0.001'], ['1', 'optim.peak_lr=0.002']]


WRONG = [
    (('EXPERIMENT', 'train.stepz=3'), "unknown field 'train.stepz'", 'train.steps'),
    (('EXPERIMENT', 'train.steps=many'), 'train.steps', 'takes int'),
    (('EXPERIMENT', 'model.depth=0'), 'model.depth=0', 'at least 1'),
    (('EXPERIMENT', 'train.steps'), 'not of the form', 'field=value'),
    (('EXPERIMENT', 'data.source.path=absent.txt'), 'absent.txt', ''),
    (('EXPERIMENT', 'data.source.path=EMPTY'), 'empty', ''),
    (('EXPERIMENT', 'data.source.path=LATIN'), 'UTF-8', ''),
    (('EXPERIMENT', 'model.vocab=100'), 'model.vocab is 100', '256'),
    (('EXPERIMENT', 'data.batch_size=0'), 'data.batch_size', 'at least 1'),
    (('EXPERIMENT', '--hosts', '0/2'), "--hosts '0/2' is not", 'INDEX/COUNT@ADDRESS:PORT'),
    (('EXPERIMENT', '--hosts', '2/2@localhost:1'), "--hosts '2/2@localhost:1' is not", 'from 0 to COUNT - 1'),
    (('EXPERIMENT', '--sweep-index', '7'), '--sweep-index 7', '0 to 1'),
    (('absent.py',), 'absent.py does not exist', ''),
    (('launch', 'README.md'), 'README.md is not a Python file', ''),
    (('fly', 'x'), "unknown command 'fly'", 'launch, sample, eval, plan, distill, bench'),
    (('sample', 'absent'), 'absent does not exist', ''),
    (('sample', 'FOLDER', '--prompt', 'x'), '', ''),
    (('eval', 'absent'), 'absent does not exist', ''),
    (('bench', 'absent'), "bench 'absent' is not one of", ''),
]


@pytest.mark.parametrize('arguments, first, second', WRONG, ids=[' '.join(w[0]) for w in WRONG])
def test_wrong_input_is_one_line_and_status_2(experiment_file, tmp_path, arguments, first, second, monkeypatch, capsys):
  """In this process, for speed: main() is what the command calls."""
  from ssmlab import launch
  (tmp_path / 'empty.txt').write_text('')
  (tmp_path / 'latin.txt').write_bytes('caf\xe9 '.encode('latin-1') * 5000)
  (tmp_path / 'folder').mkdir()
  names = dict(EXPERIMENT=experiment_file, EMPTY=tmp_path / 'empty.txt', LATIN=tmp_path / 'latin.txt', FOLDER=tmp_path / 'folder')
  for name, path in names.items():
    arguments = [a.replace(name, str(path)) for a in arguments]
  with pytest.raises(SystemExit) as stopped:
    launch.main([*arguments, *(['--workdir', str(tmp_path / 'w')] if arguments[0] == str(experiment_file) else [])])
  error = capsys.readouterr().err
  assert stopped.value.code == 2 and error.count('\n') == 1 and error.startswith('ssmlab: ')
  assert first in error and second in error
