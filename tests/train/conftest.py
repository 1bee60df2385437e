"""A tiny experiment on generated text, for the tests of training."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ssmlab.data import Bytes, Data, Text
from ssmlab.eval import HeldOut
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.rglru import RGLRU
from ssmlab.models import LM
from ssmlab.train import AdamW, Experiment, Train

ROOT = pathlib.Path(__file__).parents[2]


def write_text(path: pathlib.Path) -> None:
  """Words drawn by a Markov chain over 8 words: learnable, and the same on every machine."""
  draw, words, word, out = np.random.default_rng(0), 'alpha beta gamma delta epsilon zeta eta theta'.split(), 0, []
  for _ in range(6000):
    word = (word * 3 + int(draw.integers(0, 2))) % 8
    out.append(words[word] + ('\n' if draw.random() < 0.1 else ' '))
  path.write_text(''.join(out))


def tiny(path) -> Experiment:
  return Experiment(
      model=LM(vocab=256, width=16, pattern=(RGLRU(inner=16, heads=2),), depth=2, channel=GatedMLP(hidden=32)),
      data=Data(Text(str(path)), Bytes(), length=32, batch_size=4), optim=AdamW(peak_lr=1e-2, warmup_steps=5),
      train=Train(steps=12, log_every=1, checkpoint_every=4), evals=(('valid', HeldOut(every=4, max_tokens=512, final_max_tokens=512)),))


@pytest.fixture(scope='session')
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp('text') / 'words.txt'
  write_text(path)
  return path


@pytest.fixture
def experiment(text):
  return tiny(text)


@pytest.fixture
def experiment_file(text, tmp_path):
  """The same experiment as a file for the command line."""
  path = tmp_path / 'words_tiny.py'
  path.write_text(f'import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.train.conftest import tiny\n\n\ndef config():\n  return tiny({str(text)!r})\n'
                  "\n\ndef sweep():\n  return [{'optim.peak_lr': 0.001}, {'optim.peak_lr': 0.002}]\n")
  return path


def command(*args, file_limit: int | None = None, program: tuple[str, ...] = ('-m', 'ssmlab.launch'), **options) -> subprocess.Popen:
  """`python -m ssmlab.launch` as a process of its own.  file_limit: largest size of a file that it may write, in KiB."""
  environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu', PYTHONWARNINGS='default', **options.pop('env', {}))
  prefix = [] if file_limit is None else ['bash', '-c', f'ulimit -f {file_limit}; exec "$@"', 'bash']
  return subprocess.Popen([*prefix, sys.executable, *program, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, env=environment, cwd=ROOT, **options)


@pytest.fixture
def run():
  def finished(*args, **options):
    """(exit status, standard output, standard error)."""
    process = command(*args, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
  return finished
