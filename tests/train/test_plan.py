"""A plan's numbers against arithmetic: memory, shardings and collectives of compiled steps, and the reading of programs by itself."""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab import launch
from ssmlab.core import mesh as meshes
from ssmlab.core.config import UserError, parse
from ssmlab.data import Bytes, Chunks, Data, Documents, Sentences, Table, Text
from ssmlab.train.plan import chips, report, search
from ssmlab.train.plan.program import Collective, Program

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ('data', 'fsdp', 'tensor', 'all')


@pytest.fixture(scope='module')
def plans():
  """What planned.py says, by mesh."""
  environment = dict(os.environ, PYTHONPATH=str(ROOT))
  done = subprocess.run([sys.executable, str(ROOT / 'tests' / 'train' / 'planned.py'), *NAMES], capture_output=True, text=True, env=environment, timeout=600)
  assert done.returncode == 0, done.stderr[-3000:]
  return {row['name']: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize('name', NAMES)
def test_memory_is_the_arithmetic_of_shapes_and_shardings(plans, name):
  """Parameters by hand; Adam has two moments and three counters; the program takes these, the batch, the step's number and the key."""
  plan = plans[name]
  assert plan['held']['parameters'] == plan['declared']
  assert 0 <= plan['held']['optimiser'] - 2 * plan['declared'] <= 16
  assert plan['memory']['arguments'] == sum(plan['held'].values()) + 4 + 8
  assert plan['memory']['outputs'] < 1024                    # the state is written over itself
  assert plan['held']['batch'] == 3 * 4 * 8 * 64 // (plan['mesh']['data'] * plan['mesh']['fsdp'])


@pytest.mark.parametrize('name', NAMES)
def test_nothing_is_replicated_that_should_not_be(plans, name):
  """Only the embedding's table is, where there is no fsdp: its rows are looked up, its width is what fsdp splits."""
  assert all('(64, 32)' in what for what in plans[name]['replicated']) and (name == 'tensor' or not plans[name]['replicated'])


def moves(plan, kind: str, least: int = 1024) -> list[dict]:
  return [move for move in plan['collectives'] if move['kind'] == kind and move['bytes'] >= least]


def test_copies_exchange_gradients_and_nothing_else(plans):
  plan = plans['data']
  assert {move['kind'] for move in plan['collectives']} == {'all-reduce'} and {move['axes'] for move in plan['collectives']} == {'data'}
  sent = sum(move['bytes'] * move['count'] for move in plan['collectives'])
  assert 0 <= sent - 4 * plan['parameters'] < 256            # every gradient once, and the sums of the loss


def test_fsdp_gathers_weights_and_no_activations(plans):
  plan, largest = plans['fsdp'], 4 * 32 * 64
  assert {move['axes'] for move in plan['collectives']} == {'fsdp'}
  gathered = moves(plan, 'all-gather')
  assert gathered and all(move['bytes'] <= largest for move in gathered)
  assert all(move['count'] % 3 <= 1 for move in gathered)    # in each of three layers, and the head's once, not in each of its four pieces


def test_tensor_sums_activations_and_gathers_nothing(plans):
  plan = plans['tensor']
  assert not moves(plan, 'all-gather') and {move['axes'] for move in plan['collectives']} == {'tensor'}
  stream = 8 * 64 * 32 * 4                                   # of the residual stream, in a block's forward pass, recomputed, and backward
  assert sum(move['bytes'] * move['count'] for move in moves(plan, 'all-reduce')) <= 3 * 10 * stream


def test_each_axis_has_its_own_collectives(plans):
  assert {'data', 'fsdp', 'tensor', 'data x fsdp'} <= {move['axes'] for move in plans['all']['collectives']}


def test_flops_are_split_over_the_devices(plans):
  from tests.train.planned import experiment
  forward = experiment().model.flops(64) * 8 * 64
  assert all(plan['useful'] * 8 == 3 * forward and plan['flops'] * 8 == 4 * forward for plan in plans.values())


# Programs by themselves.

def program(text: str, shape=(2, 4, 1, 1)) -> Program:
  mesh = argparse.Namespace(devices=np.zeros(shape), size=int(np.prod(shape)), axis_names=meshes.AXES)
  return Program(text, mesh, on_chip=True)


def loop(condition: str, annotation: str = '', collective: str = '%s = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}') -> str:
  return f'''HloModule m
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p = (s32[], f32[8]{{0}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  %x = f32[8]{{0}} get-tuple-element(%p), index=1
  %one = s32[] constant(2)
  %next = s32[] add(%i, %one)
  {collective}
  ROOT %t = (s32[], f32[8]{{0}}) tuple(%next, %s)
}}
%condition (q: (s32[], f32[8])) -> pred[] {{
  %q = (s32[], f32[8]{{0}}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %end = s32[] constant(13)
  ROOT %less = pred[] {condition}
}}
ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8]{{0:T(8)}} parameter(0)
  %zero = s32[] constant(3)
  %start = (s32[], f32[8]{{0}}) tuple(%zero, %a)
  %w = (s32[], f32[8]{{0}}) while(%start), condition=%condition, body=%body{annotation}
  ROOT %r = f32[8]{{0}} get-tuple-element(%w), index=1
}}
'''


@pytest.mark.parametrize('condition, annotation, count, at_least', [
    ('compare(%j, %end), direction=LT', '', 5, False),                                              # 3, 5, ... 11: as XLA:TPU leaves it
    ('compare(%j, %end), direction=LT', ', backend_config={"known_trip_count":{"n":"7"}}', 7, False),
    ('compare(%j, %end), direction=NE', '', 1, True)])
def test_a_loop_counts_as_often_as_it_runs(condition, annotation, count, at_least):
  assert program(loop(condition, annotation)).collectives() == [Collective('all-reduce', 'fsdp', 4, 32, count, at_least)]


@pytest.mark.parametrize('groups, axes, size', [
    ('replica_groups={{0,4},{1,5},{2,6},{3,7}}', 'data', 2), ('replica_groups=[2,4]<=[8]', 'fsdp', 4), ('replica_groups=[4,2]<=[2,4]T(1,0)', 'data', 2),
    ('replica_groups={}', 'data x fsdp', 8), ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 'fsdp', 4),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}", 'data', 2),
    ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)2}", 'data', 2), ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}", 'fsdp', 4)])
def test_groups_are_read_in_every_form(groups, axes, size):
  collective = f'%s = f32[8]{{0}} all-reduce(%x), channel_id=1, {groups}, use_global_device_ids=true'
  found, = program(loop('compare(%j, %end), direction=LT', collective=collective)).collectives()
  assert (found.axes, found.size) == (axes, size)


def test_started_chained_and_scattered_forms_are_what_they_are():
  text = '''HloModule m
%start_of (p0: f32[2]) -> f32[8] {
  %p0 = f32[2]{0} parameter(0)
  ROOT %g0 = f32[8]{0} all-gather(%p0), channel_id=5, replica_groups=[2,4]<=[8], dimensions={0}, frontend_attributes={chain_id="1"}
}
%end_of (p1: f32[2]) -> f32[8] {
  %p1 = f32[2]{0} parameter(0)
  ROOT %g1 = f32[8]{0} all-gather(%p1), channel_id=5, replica_groups=[2,4]<=[8], dimensions={0}, frontend_attributes={chain_id="1"}
}
%all-reduce-scatter.1 (p2: bf16[16]) -> bf16[4] {
  %p2 = bf16[16]{0} parameter(0)
  %sum = bf16[16]{0} all-reduce(%p2), channel_id=6, replica_groups=[2,4]<=[8]
  ROOT %mine = bf16[4]{0} slice(%sum), slice={[0:4]}
}
ENTRY %main (a: f32[2], b: bf16[16]) -> f32[8] {
  %a = f32[2]{0} parameter(0)
  %b = bf16[16]{0} parameter(1)
  %async-collective-start.1 = f32[8]{0} fusion(%a), kind=kCustom, calls=%start_of
  %async-collective-done.1 = f32[8]{0} fusion(%a), kind=kCustom, calls=%end_of
  %scattered = bf16[4]{0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
  %ag = (f32[2]{0}, f32[4]{0}) all-gather-start(%a), channel_id=7, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  %agd = f32[4]{0} all-gather-done(%ag)
  %cp = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%a), channel_id=8, source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}
  ROOT %done = f32[8]{0} copy(%async-collective-done.1)
}
'''
  assert sorted(program(text).collectives(), key=lambda move: (move.kind, move.axes)) == [
      Collective('all-gather', 'data', 2, 16, 1), Collective('all-gather', 'fsdp', 4, 32, 1), Collective('collective-permute', 'fsdp', 4, 8, 1),
      Collective('reduce-scatter', 'fsdp', 4, 8, 1)]


def test_a_ring_sends_what_it_sends():
  sent = {kind: Collective(kind, 'fsdp', 4, 100, 2).sent() for kind in ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')}
  assert sent == {'all-reduce': 300, 'all-gather': 150, 'reduce-scatter': 600, 'all-to-all': 150, 'collective-permute': 200}


def test_traffic_is_what_xla_counts_where_nothing_loops_and_times_the_turns_where_it_does():
  one, x, mesh = lambda x, _: (jnp.sin(x @ x), None), jnp.ones((128, 128)), meshes.make(devices=jax.devices()[:1])
  compiled = lambda turns: jax.jit(lambda x: jax.lax.scan(one, x, None, length=turns)[0]).lower(x).compile()
  straight = jax.jit(lambda x: one(x, None)[0]).lower(x).compile()
  counted = Program(straight.as_text(), mesh, on_chip=False).traffic()
  assert counted == pytest.approx(straight.cost_analysis()['bytes accessed'], rel=0.01)
  ten, hundred = (Program(compiled(n).as_text(), mesh, on_chip=False).traffic() for n in (10, 100))
  assert (hundred - ten) / 90 == pytest.approx(counted, rel=0.6)              # a turn may copy its carry


# What the parts of an experiment say without data.

DATA = {
    'data': lambda folder: Data(Text(str(folder / 'a.txt')), Bytes(), length=32, batch_size=4),
    'chunks': lambda folder: Chunks(Text(str(folder / 'a.txt')), Bytes(), length=32, batch_size=4, chunk=4),
    'documents': lambda folder: Documents(Text(str(folder / 'a.txt')), Bytes(), length=32, batch_size=4, most=16),
    'sentences': lambda folder: Sentences(Table(str(folder / 'a.tsv'), ('0',), '1'), Bytes(), length=32, batch_size=4)}


@pytest.mark.parametrize('name', DATA)
def test_shapes_are_those_of_a_batch(name, tmp_path):
  (tmp_path / 'a.txt').write_text('It was a dark night.\n\n' * 400)
  (tmp_path / 'a.tsv').write_text(''.join(f'It was {n}.\t{n % 2}\n' for n in range(200)))
  data = DATA[name](tmp_path)
  batch = next(data.train_batches())
  assert {key: (array.shape, array.dtype) for key, array in batch.items()} == {key: (s.shape, s.dtype) for key, s in data.shapes().items()}


def test_every_experiment_is_of_data_whose_shapes_are_tested():
  kinds = {type(launch.load_experiment(str(path)).config().data) for path in (ROOT / 'experiments').glob('*.py')}
  assert kinds <= {Data, Chunks, Documents, Sentences}


# Advice and search, by arithmetic.

SMALL = chips.Chip('small', 2.0**20, 1e12, 1e11, 1e10, 'a test')


def test_advice_names_overrides_that_parse_and_should_fit():
  from tests.train.planned import experiment
  case = experiment()
  advice = search.advice(case, 1.2 * SMALL.memory, SMALL, 8)
  assert any(line.startswith('mesh.fsdp=') for line in advice)
  for line in advice:
    changed = parse(case, line.split(':')[0].split())
    changed.check_shapes(8)
  case = dataclasses.replace(case, model=dataclasses.replace(case.model, remat='none'))
  assert any('model.remat=block' in line for line in search.advice(case, 1.05 * SMALL.memory, SMALL, 8))


def test_advice_says_when_nothing_helps():
  from tests.train.planned import experiment
  tiny = dataclasses.replace(SMALL, memory=100.0)
  only, = search.advice(experiment(), 1e6, tiny, 8)
  assert only.startswith('more devices') and 'still does not fit' in only


def test_a_search_lays_out_what_can_be_and_puts_what_fits_first():
  from tests.train.planned import experiment
  found = search.ranked(experiment(), dataclasses.replace(SMALL, memory=400e3), 8)
  assert all(guess.experiment.check_shapes(8) is None for guess in found) and len({str(guess) for guess in found}) == len(found)
  fits = [guess.memory <= 400e3 for guess in found]
  assert fits == sorted(fits, reverse=True) and any(fits) and not all(fits)
  times = [guess.seconds for guess, fit in zip(found, fits) if fit]
  assert times == sorted(times)


# The command.

def test_the_table_and_the_numbers(experiment_file, tmp_path, capsys):
  with pytest.raises(SystemExit) as done:
    launch.main(['plan', str(experiment_file), 'mesh.data=1', '-o', str(tmp_path / 'plan.json')])
  out, err = capsys.readouterr()
  assert not done.value.code and 'compiling the step for 1 x CPU' in err
  rows = dict(line.split('  ', 1) for line in out.splitlines())
  numbers = json.loads((tmp_path / 'plan.json').read_text())
  assert rows['parameters'].strip() == f'{numbers["parameters"]:,}' and rows['collectives'].strip() == 'none' and numbers['fits'] is None
  assert not any(name.startswith('estimated') for name in rows)               # of this CPU no rates are published


@pytest.mark.parametrize('arguments, said', [
    (['--topology', 'v9:2x2'], "'v9' is not one of v5e, v5p, v6e, h100, h200"),
    (['--topology', 'v5e'], 'expected v5e:AxB or v5e:AxBxC'),
    (['--topology', 'h200:0'], 'expected h200:GPUS or h200:MACHINESxGPUS'),
    (['--topology', 'v5e:2x2', '--devices', '4'], '--topology says how many devices'),
    (['--devices', '0'], '--devices 0: must be at least 1'),
    (['--devices', '4096'], 'this process has'),
    (['--search'], '--search needs a --topology'),
    (['data.batch_size=3', 'train.accumulate=2'], 'data.batch_size=3 is not a multiple of 2'),
    (['mesh.fsdp=3'], 'mesh: 1 x 3 x 1 x 1'),
    (['-o', 'plan.txt'], 'expected a name that ends in .json')])
def test_what_the_user_can_mend_is_one_line(experiment_file, arguments, said, capsys):
  with pytest.raises(SystemExit) as done:
    launch.main(['plan', str(experiment_file), *arguments])
  _, err = capsys.readouterr()
  assert done.value.code == 2 and said in err and err.count('\n') == 1


@pytest.mark.parametrize('topology, package', [('v5e:2x2', 'plan-tpu'), ('h200:8', 'plan-gpu')])
def test_a_missing_compiler_is_named(topology, package, monkeypatch):
  monkeypatch.setattr(chips.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match=rf"pip install 'ssmlab\[{package}\]'"):
    chips.devices(topology, None)


def test_what_a_compiler_refuses_is_a_number():
  said = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.50G of 15.75G hbm. Exceeded hbm capacity by 768M.'
  assert report._refused(said) == 16.5 * 2**30
  assert report._refused('Ran out of memory on HBM, the total memory required for HLO temporaries (512.00G) exceeds available HBM (15.75G).') == 2**39
  assert report._refused('INTERNAL: something else') is None
