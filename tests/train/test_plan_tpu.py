"""Plans for TPU slices, compiled by libtpu: `pip install '.[test,plan-tpu]'` and `-m slow`."""

import pytest

from ssmlab import launch
from ssmlab.core import mesh as meshes
from ssmlab.core.config import parse
from ssmlab.train.plan import chips, report
from tests.train.planned import experiment

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def compiler():
  pytest.importorskip('libtpu')


@pytest.fixture(scope='module')
def v5e(compiler):
  chips.prepare('v5e:2x2', None)
  return chips.devices('v5e:2x2', None)


def test_a_step_for_a_slice_that_is_not_there(v5e):
  chip, devices = v5e
  plan = report.plan(experiment(fsdp=4), chip, devices)
  exact = sum(plan.held.values()) + 4 + 8
  assert exact <= plan.memory['arguments'] <= 5 * exact      # arrays as small as these are mostly padding to tiles of 8 x 128
  assert plan.fits and {move.axes for move in plan.collectives} == {'fsdp'} and not any(move.at_least for move in plan.collectives)
  gathered = sum(move.count * move.bytes for move in plan.collectives if move.kind == 'all-gather')
  weights = 4 * experiment().model.size()
  assert 1.5 * weights < gathered < 4 * weights              # for the forward pass, again for the recomputed one and for the gradient
  fastest, slowest = plan.step()
  assert 0 < fastest < slowest


def test_what_does_not_fit_is_a_table_with_advice(v5e, tmp_path, capsys):
  """8 x 131,072 tokens of a model without remat want more than 16 GB a device."""
  file = tmp_path / 'large.py'
  file.write_text("import dataclasses\nfrom tests.train.planned import experiment\n\n\ndef config():\n  one = experiment(fsdp=4)\n"
                  "  return dataclasses.replace(one, model=dataclasses.replace(one.model, width=1024, remat='none'), "
                  "data=dataclasses.replace(one.data, length=131072))\n")
  with pytest.raises(SystemExit) as done:
    launch.main(['plan', str(file), '--topology', 'v5e:2x2'])
  out, _ = capsys.readouterr()
  assert done.value.code == 1 and 'fits' in out and 'no, ' in out and 'to fit' in out
  for line in out.splitlines():
    if line.startswith('to fit') and 'more devices' not in line:
      parse(experiment(), line.removeprefix('to fit').split(':')[0].split())


@pytest.mark.parametrize('topology, sizes', [('v5e:16x16', (64, 2, 2, 1)), ('v5e:16x16', (2, 128, 1, 1)), ('v5p:4x4x4', (16, 2, 2, 1)),
                                             ('v5p:4x4x4', (2, 32, 1, 1))])
def test_meshes_that_are_no_product_of_the_torus(topology, sizes):
  chips.prepare(topology, None)
  devices = chips.devices(topology, None)[1]
  mesh = meshes.make(meshes.MeshConfig(*sizes), devices)
  assert mesh.devices.shape == sizes and len({device.id for device in mesh.devices.flat}) == len(devices)


def test_offload_keeps_what_enters_the_blocks_on_the_host(v5e):
  chip, devices = v5e
  plans = {remat: report.plan(parse(experiment(fsdp=4), [f'model.remat={remat}', 'model.depth=24', 'model.width=256', 'data.length=2048']), chip, devices)
           for remat in ('block', 'offload')}
  one = experiment(fsdp=4)
  entering = 24 * one.data.batch_size // 4 * 2048 * 256 * (2 if one.model.activations == 'bfloat16' else 4)
  assert plans['block'].memory['host'] == 0 and entering <= plans['offload'].memory['host'] <= 1.1 * entering
  assert plans['offload'].memory['temporaries'] < plans['block'].memory['temporaries']
