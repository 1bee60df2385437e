"""On two meshes of eight virtual devices (data 2, fsdp 2, tensor 2; tensor 2, sequence 4) every mixer and every kind of network gives one device's
loss and gradients, and every mixer that carries a state one device's logits and last state where the mesh splits the time that it reads."""

import csv
import pkgutil

import pytest

import ssmlab.mixers
from tests.eight_devices import FLAGS, lines

MIXERS = sorted(m.name for m in pkgutil.iter_modules(ssmlab.mixers.__path__))
# The keys of attention without a window; and the two of which nothing of a part can be said before the one before it, in two heads, which four
# parts cannot share.
GATHER = {'slstm', 'ttt_linear', 'bert', 'modern', 'calm'}


@pytest.mark.parametrize('names', [MIXERS[::2], MIXERS[1::2], ['autoencoder', 'bert', 'calm', 'modern']], ids=['mixers', 'more mixers', 'networks'])
def test_sharded_is_one_device(names):
  printed = lines('train/sharded', *names) if set(names) <= set(MIXERS) else lines('train/sharded_networks')
  rows = {name: (int(gathers), *map(float, differences)) for name, gathers, *differences in map(str.split, printed)}
  assert sorted(rows) == names
  assert all(loss < 1e-5 and gradient < 1e-4 and max(reading, default=0) < 1e-5 for _, loss, gradient, *reading in rows.values()), rows
  assert {name for name, (gathers, *_) in rows.items() if gathers} == GATHER & set(names), rows


def test_weak_scaling_says_what_every_axis_sends(experiment_file, tmp_path, run):
  """Two devices along each axis; the times are anybody's, the collectives are not."""
  status, out, err = run('bench', 'scaling', experiment_file, '--devices', 2, '--repeats', 1, '-o', tmp_path / 'rows.csv', 'model.depth=1',
                         env=dict(XLA_FLAGS=FLAGS))
  assert status == 0 and len(out.splitlines()) == 6, err
  with (tmp_path / 'rows.csv').open() as file:
    rows = {(row['axis'], int(row['devices'])): row for row in csv.DictReader(file)}
  assert list(rows) == [('-', 1), ('data', 2), ('fsdp', 2), ('tensor', 2), ('sequence', 2)]
  sent = {axis: (int(row['collectives']), float(row['sent_MB'])) for (axis, _), row in rows.items()}
  assert sent.pop('-') == (0, 0) and all(count > 0 and size > 0 for count, size in sent.values()), sent
  assert all(float(row['step_ms']) > 0 and (float(row['collectives_ms']) > 0) == (axis != '-') for (axis, _), row in rows.items())
  status, _, err = run('bench', 'scaling', experiment_file, '--devices', 1)
  assert (status, err) == (2, 'ssmlab: --devices 1: must be at least 2\n')
