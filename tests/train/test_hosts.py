"""Several hosts, as processes on loopback: the run of one process, lost hosts, SIGTERM, and other numbers of hosts."""

import contextlib
import json
import random
import shutil
import signal
import socket
import time

import chex
import jax
import pytest

from ssmlab.core.config import UserError
from ssmlab.train import checkpoint, hosts, metrics
from tests.train.conftest import ROOT, command
from tests.train.test_process import parameters, wait_for

PROGRAM = ('-c', 'from ssmlab.train import hosts; hosts.HEARTBEAT, hosts.JOIN = 10, 20; from ssmlab.launch import main; main()')
SETTINGS = ('train.steps=60', 'train.checkpoint_every=3', 'evals.0.1.every=0', 'data.batch_size=8')


@contextlib.contextmanager
def together(count: int, devices: int, *args, program=PROGRAM, **env):
  """The processes of `count` hosts with so many devices each; none outlives the block."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  env = dict(XLA_FLAGS=f'--xla_force_host_platform_device_count={devices}', JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0', **env)
  where = lambda index: f'{index}/{count}@127.0.0.1:{port}'
  given = lambda index: [] if count == 1 else ['--hosts', where(index)] if program is PROGRAM else [where(index)]
  processes = [command(*args, *given(index), program=program, env=env) for index in range(count)]
  try:
    yield processes
  finally:
    for process in processes:
      process.kill()
      process.communicate()


def ended(processes, timeout: float = 240):
  """[(exit status, standard output, standard error)]."""
  return [(process.returncode, *both) for process, both in [(process, process.communicate(timeout=timeout)) for process in processes]]


def finish(count: int, devices: int, *args):
  """Runs to the end; standard output of the first host."""
  with together(count, devices, *args) as processes:
    found = ended(processes)
  assert all(status == 0 for status, _, _ in found), found
  assert not any(out for _, out, _ in found[1:])             # only the first speaks
  return found[0][1]


@pytest.fixture(scope='module')
def words(text, tmp_path_factory):
  """The tiny experiment as a file, for all tests of the module."""
  path = tmp_path_factory.mktemp('hosts') / 'words_tiny.py'
  path.write_text(f'import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.train.conftest import tiny\n\n\ndef config():\n  return tiny({str(text)!r})\n')
  return path


@pytest.fixture(scope='module')
def whole(words):
  """The workdir of an undisturbed run on two hosts."""
  finish(2, 2, words, '--workdir', words.parent / 'whole', *SETTINGS)
  return words.parent / 'whole'


def losses(path):
  return {row['step']: row['train/loss'] for row in metrics.read(path / 'metrics.jsonl') if 'train/loss' in row}


def close(path, other):
  """The runs differ by the order of float32 sums only."""
  chex.assert_trees_all_close(parameters(path)[0], parameters(other)[0], atol=2e-4)
  assert losses(path) == pytest.approx(losses(other), abs=1e-4) and losses(path).keys() == losses(other).keys()


def test_two_hosts_are_one_process(words, whole, tmp_path):
  finish(1, 4, words, '--workdir', tmp_path / 'one', *SETTINGS)
  close(whole, tmp_path / 'one')
  read = lambda path: json.loads((path / 'summary.json').read_text())
  there, here = read(whole), read(tmp_path / 'one')
  assert [name for name in here if not name.startswith('seconds') and there[name] != pytest.approx(here[name], rel=1e-4)] == []
  assert json.loads((whole / 'environment.json').read_text())['processes'] == 2


def kills(words, path, count: int, seed: int, limit: float) -> None:
  """Starts two hosts again and again and kills one of them, `count` times: at start-up, between steps, while checkpoints are written."""
  draw, reached = random.Random(seed), 0
  for kill in range(count):
    with together(2, 2, words, '--workdir', path, *SETTINGS) as processes:
      if kill % 4 == 3:
        time.sleep(draw.uniform(0.5, 6.0))
      else:
        wait_for(processes[0], path, reached + draw.randint(1, max(50 // count, 2)))
        time.sleep(draw.uniform(0.0, 0.2))
      victim = draw.randrange(2)
      assert processes[victim].poll() is None, ended(processes)            # every one is a real kill
      processes[victim].kill()
      began = time.monotonic()
      status, _, err = ended([processes[1 - victim]], limit)[0]
      last = err.strip().splitlines()[-1]
      print(f'kill {kill}: host {victim} at step {reached} and later; the other ended after {time.monotonic() - began:.1f} s: {last}')
      assert status in (1, 2) and ('is gone' in last or 'joined' in last or 'did not answer' in last), err
    reached = max([reached, *losses(path)])


def goes_on(words, path, whole) -> None:
  """The killed run, started again, ends bit for bit like the undisturbed one."""
  assert 'resumed at step' in finish(2, 2, words, '--workdir', path, *SETTINGS)
  chex.assert_trees_all_equal(parameters(path)[0], parameters(whole)[0])
  assert losses(path) == losses(whole)


def test_killed_hosts_end_the_others_and_the_run_ends_bit_for_bit_the_same(words, whole, tmp_path):
  kills(words, tmp_path / 'killed', 4, seed=0, limit=120)
  goes_on(words, tmp_path / 'killed', whole)


@pytest.mark.slow
def test_twenty_kills(words, whole, tmp_path):
  kills(words, tmp_path / 'killed', 20, seed=1, limit=120)
  goes_on(words, tmp_path / 'killed', whole)


def test_sigterm_to_one_stops_all_and_any_number_of_hosts_goes_on(words, whole, tmp_path):
  path = tmp_path / 'stopped'
  with together(2, 2, words, '--workdir', path, *SETTINGS, 'train.checkpoint_every=0') as processes:
    wait_for(processes[0], path, 5)
    processes[1].send_signal(signal.SIGTERM)
    found = ended(processes)
  assert [status for status, _, _ in found] == [143, 143], found
  (step,) = [int(p.name) for p in (path / 'checkpoints').iterdir()]
  assert f'SIGTERM: saved at step {step} ' in found[0][1] and 5 < step < 60
  for count, devices, settings in ((4, 1, ()), (1, 2, ('mesh.tensor=2',))):
    shutil.copytree(path, tmp_path / str(count))
    assert f'resumed at step {step} of 60' in finish(count, devices, words, '--workdir', tmp_path / str(count), *SETTINGS, *settings)
    close(tmp_path / str(count), whole)
  finish(2, 2, words, '--workdir', path, *SETTINGS)
  chex.assert_trees_all_equal(parameters(path)[0], parameters(whole)[0])


def test_every_host_reads_the_rows_of_its_devices():
  with together(2, 2, program=(str(ROOT / 'tests' / 'train' / 'many_hosts.py'),)) as processes:
    found = ended(processes)
  assert [status for status, _, _ in found] == [0, 0], found


def test_different_hosts_are_refused(words, tmp_path):
  with together(2, 1, words, '--quick') as processes:        # each with a scratch folder of its own
    for status, _, err in ended(processes):
      assert status == 2 and err == 'ssmlab: host 1 of 2: not the experiment and workdir of host 0; start all hosts with the same command and the same files\n'


def test_a_port_that_is_taken():
  with socket.create_server(('', 0)) as taken:
    with pytest.raises(UserError, match='host 0 of 2 cannot listen at port'):
      hosts.start(f'0/2@127.0.0.1:{taken.getsockname()[1]}')


def test_nobody_answers(monkeypatch):
  monkeypatch.setattr(hosts, 'JOIN', 0.1)
  with pytest.raises(UserError, match='host 1 of 2: host 0 did not answer at 127.0.0.1:9 within 0.1 s'):
    hosts.start('1/2@127.0.0.1:9')


SLURM = dict(SLURM_JOB_ID='7', SLURM_STEP_NODELIST='node[3-4]', SLURM_PROCID='1', SLURM_LOCALID='0')


def test_what_the_environment_says(monkeypatch):
  monkeypatch.setattr(hosts, '_await', lambda *_: pytest.fail('a single process joins nobody'))
  hosts.start()
  hosts.start('alone')
  for name, value in (SLURM | dict(SLURM_NTASKS='1')).items():
    monkeypatch.setenv(name, value)
  hosts.start()                                              # a job array's task
  monkeypatch.setenv('SLURM_NTASKS', '2')
  hosts.start('alone')
  assert hosts._detected() == ('node3:61447', 2, 1, [0])
  for name in SLURM:
    monkeypatch.delenv(name)
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'a:1')
  with pytest.raises(UserError, match='JAX_COORDINATOR_ADDRESS=a:1 is set, but not how many hosts'):
    hosts.start()


def test_a_checkpoint_of_another_version_is_refused(tmp_path, monkeypatch):
  state = dict(w=jax.numpy.ones(3))
  with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as checkpoints:
    checkpoints.save(state, 12, {}, {})
    checkpoints.wait()
    monkeypatch.setattr(checkpoint, 'VERSION', 2)
    with pytest.raises(UserError, match='12 was written by version 1 of the checkpoint format; this is version 2'):
      checkpoints.restore(state, 12)
