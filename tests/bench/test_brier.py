"""BrierLM against cross entropy: the table is read back from what runs measured, and says how the two agree."""

import csv
import json

import numpy as np
import pytest

from ssmlab.bench import brier
from ssmlab.core.config import UserError

EXPERIMENT = '''
from ssmlab.data import Bytes, Data, Text
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.mingru import MinGRU
from ssmlab.models import LM
from ssmlab.train import AdamW, Experiment, Train

def config():
  model = LM(vocab=256, width=16, pattern=(MinGRU(expand=1.0),), depth=1, channel=GatedMLP(16), remat='none')
  text = Text({path!r}, valid={path!r})
  return Experiment(model=model, data=Data(text, Bytes(), length=32, batch_size=4), optim=AdamW(peak_lr=3e-2, warmup_steps=2), train=Train(log_every=1))
'''


def row(step, loss, score):
  return dict(model='x', step=step, tokens=step, loss=loss, **(dict.fromkeys(brier.COLUMNS, 0.1) | dict(brierlm=score)))


def test_agreement():
  rows = [row(1, 3.0, 1.0), row(2, 2.0, 2.0), row(3, 1.0, 9.0)]
  found = brier.agreement(rows)
  assert len(found) == 1 and found[0]['checkpoints'] == 3
  assert found[0]['pearson'] == pytest.approx(np.corrcoef([3, 2, 1], [1, 2, 9])[0, 1]) and found[0]['spearman'] == pytest.approx(-1)
  both = brier.agreement(rows + [r | dict(model='y') for r in rows])
  assert [r['model'] for r in both] == ['x', 'y', 'all'] and both[-1]['checkpoints'] == 6


def test_train_read_plot_and_read_again(tmp_path, capsys):
  (tmp_path / 'text.txt').write_text('the cat sat on the mat. ' * 40)
  file = tmp_path / 'small.py'
  file.write_text(EXPERIMENT.format(path=str(tmp_path / 'text.txt')))
  brier.main([str(file), '--steps', '31', '--points', '3', '--max-tokens', '128', '--stride', '2', '--workdir', str(tmp_path / 'w'), '-o', str(tmp_path / 'b.csv')])
  rows = list(csv.DictReader((tmp_path / 'b.csv').read_text().splitlines()))
  assert [int(r['step']) for r in rows] == [10, 20, 30] and float(rows[-1]['loss']) < float(rows[0]['loss'])
  assert float(rows[-1]['brier_1']) > float(rows[0]['brier_1'])
  assert (tmp_path / 'b.png').read_bytes().startswith(b'\x89PNG') and 'pearson' in capsys.readouterr().out
  brier.main([str(tmp_path / 'w' / 'small'), '-o', str(tmp_path / 'again.json')])
  assert [r['brierlm'] for r in json.loads((tmp_path / 'again.json').read_text())] == pytest.approx([float(r['brierlm']) for r in rows])


def test_what_is_refused(tmp_path):
  with pytest.raises(UserError, match='has no metrics.jsonl'):
    brier.main([str(tmp_path)])
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "tokens": 3, "valid/loss": 2.0}\n')
  with pytest.raises(UserError, match='measured no BrierLM'):
    brier.main([str(tmp_path)])
  with pytest.raises(UserError, match='--points 2 of --steps 300'):
    brier.measured(None, 300, 2, 10, 1)
