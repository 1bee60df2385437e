"""On a mesh of eight virtual devices (data 2, fsdp 2, tensor 2) every mixer and every kind of network gives one device's loss and gradients."""

import os
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import ssmlab.mixers

ROOT = pathlib.Path(__file__).parents[2]
MIXERS = sorted(m.name for m in pkgutil.iter_modules(ssmlab.mixers.__path__))


@pytest.mark.parametrize('script, names', [('sharded', MIXERS), ('sharded_networks', ['autoencoder', 'bert', 'calm', 'modern'])])
def test_sharded_is_one_device(script, names):
  environment = dict(os.environ, XLA_FLAGS='--xla_force_host_platform_device_count=8', JAX_PLATFORMS='cpu', PYTHONPATH=str(ROOT))
  done = subprocess.run([sys.executable, str(ROOT / 'tests' / 'train' / f'{script}.py')], capture_output=True, text=True, env=environment, timeout=900)
  assert done.returncode == 0, done.stderr[-3000:]
  rows = {name: (float(loss), float(gradient)) for name, loss, gradient in map(str.split, done.stdout.splitlines())}
  assert sorted(rows) == names
  assert all(loss < 1e-5 and gradient < 1e-4 for loss, gradient in rows.values()), rows
