"""On two meshes of eight virtual devices (data 2, fsdp 2, tensor 2; tensor 2, sequence 4) every mixer and every kind of network gives one device's
loss and gradients."""

import pkgutil

import pytest

import ssmlab.mixers
from tests.eight_devices import lines

MIXERS = sorted(m.name for m in pkgutil.iter_modules(ssmlab.mixers.__path__))
# The keys of attention without a window; and the two of which nothing of a part can be said before the one before it, in two heads, which four
# parts cannot share.
GATHER = {'slstm', 'ttt_linear', 'bert', 'modern', 'calm'}


@pytest.mark.parametrize('script, names', [('sharded', MIXERS), ('sharded_networks', ['autoencoder', 'bert', 'calm', 'modern'])])
def test_sharded_is_one_device(script, names):
  rows = {name: (float(loss), float(gradient), int(gathers)) for name, loss, gradient, gathers in map(str.split, lines(f'train/{script}'))}
  assert sorted(rows) == names
  assert all(loss < 1e-5 and gradient < 1e-4 for loss, gradient, _ in rows.values()), rows
  assert {name for name, (_, _, gathers) in rows.items() if gathers} == GATHER & set(names), rows
