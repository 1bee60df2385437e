"""Encoders and masked words, dropout included, on a mesh of eight virtual devices give one device's loss and gradients."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_sharded_is_one_device():
  environment = dict(os.environ, XLA_FLAGS='--xla_force_host_platform_device_count=8', JAX_PLATFORMS='cpu', PYTHONPATH=str(ROOT))
  done = subprocess.run([sys.executable, str(ROOT / 'tests' / 'train' / 'sharded_encoder.py')], capture_output=True, text=True, env=environment, timeout=600)
  assert done.returncode == 0, done.stderr[-3000:]
  rows = {name: (float(loss), float(gradient)) for name, loss, gradient in map(str.split, done.stdout.splitlines())}
  assert sorted(rows) == ['bert', 'modern']
  assert all(loss < 1e-5 and gradient < 1e-4 for loss, gradient in rows.values()), rows
