"""The suites run at sizes that take seconds and say what they should; speed itself is never tested."""

import csv
import dataclasses
import json
import os
import subprocess
import sys

import pytest

import ssmlab
from ssmlab import bench
from ssmlab.bench import mixers, peers, recurrence
from ssmlab.core.config import UserError
from ssmlab.mixers import attention, retention


def test_mixers_say_what_grows_with_length(tmp_path):
  models = {type(m).__name__: ssmlab.LM(vocab=16, width=32, pattern=(m,), depth=1)
            for m in (dataclasses.replace(attention.TINY, window=None), retention.TINY)}
  rows = mixers.run(models, (16, 64), batch=2, repeats=1, segment=32)
  assert [(row['mixer'], row['length']) for row in rows] == [(name, n) for name in models for n in (16, 64)]
  assert all(row[name] > 0 for row in rows for name in ('forward_us', 'training_us', 'decode_us', 'training_MiB', 'state_bytes', 'flops'))
  assert [row['batch'] for row in rows] == [2, 2, 2, 2] and [row['segment'] for row in rows] == [0, 0, 32, 32]      # attention's state grows
  short, long, short_retention, long_retention = rows
  assert long['state_bytes'] > 2 * short['state_bytes'] and long['flops'] > short['flops']
  assert long_retention['state_bytes'] == short_retention['state_bytes'] and long_retention['flops'] == short_retention['flops']
  flat = {row['mixer']: row['flops'] for row in mixers.growth(rows, start=16)}
  assert flat['Retention'] == 1 < flat['Attention']
  mixers.plot(rows, tmp_path / 'mixers.png')
  assert (tmp_path / 'mixers.png').read_bytes().startswith(b'\x89PNG')


def test_recurrence_prints_ratios_and_writes_them(tmp_path, capsys):
  path = tmp_path / 'deep' / 'rows.json'
  recurrence.main('--batch 1 --heads 1 --size 8 --length 32 --memory-length 32 --repeats 1'.split() + ['-o', str(path)])
  rows = json.loads(path.read_text())
  assert [row['decay'] for row in rows] == list(recurrence.KINDS)
  for row in rows:
    assert row['both_ratio'] == pytest.approx(row['loop_both_ms'] / row['chunked_both_ms'])
  assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)


def test_tables_go_to_csv_and_refuse_other_names(tmp_path):
  bench.write(tmp_path / 'rows.csv', [dict(name='a', value=1.5), dict(name='b', value=2.5)])
  with (tmp_path / 'rows.csv').open() as file:
    assert list(csv.DictReader(file)) == [dict(name='a', value='1.5'), dict(name='b', value='2.5')]
  with pytest.raises(UserError, match='rows.txt: expected a name that ends in .json or .csv'):
    bench.table_path('rows.txt')


def test_peers_say_what_is_missing(monkeypatch):
  with pytest.raises(UserError, match="system 'Mamba-9' is not one of RWKV-4, Mamba"):
    peers.main(['Mamba-9'])
  monkeypatch.setitem(sys.modules, 'torch', None)
  monkeypatch.setitem(sys.modules, 'rwkv', None)
  with pytest.raises(UserError, match=r"pip install 'ssmlab\[peers\]'"):
    peers.main(['Mamba'])


def test_memory_that_a_call_gives_back_is_kept():
  """Writing to 64 MB again and again: without a page of the system's each time."""
  code = ('import resource, numpy as np; from ssmlab import bench; {}\n'
          'def once(): np.zeros(16_000_000, np.float32).fill(1)\n'
          'for _ in range(3): once()\n'
          'before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
          'for _ in range(5): once()\n'
          'print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)')
  plain = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
  faults = [int(subprocess.run([sys.executable, '-c', code.format(call)], env=plain, capture_output=True, text=True, check=True).stdout)
            for call in ('pass', 'bench.keep_memory()')]
  assert faults[1] < 50 < faults[0], faults
