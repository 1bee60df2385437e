"""On two meshes of eight virtual devices (data 2, fsdp 2, tensor 2; tensor 2, sequence 4) every mixer and every kind of network gives one device's
loss and gradients."""

import pkgutil

import pytest

import ssmlab.mixers
from tests.eight_devices import lines

MIXERS = sorted(m.name for m in pkgutil.iter_modules(ssmlab.mixers.__path__))


@pytest.mark.parametrize('script, names', [('sharded', MIXERS), ('sharded_networks', ['autoencoder', 'bert', 'calm', 'modern'])])
def test_sharded_is_one_device(script, names):
  rows = {name: (float(loss), float(gradient)) for name, loss, gradient in map(str.split, lines(f'train/{script}'))}
  assert sorted(rows) == names
  assert all(loss < 1e-5 and gradient < 1e-4 for loss, gradient in rows.values()), rows
