"""Every experiment prints what it is, and runs two small steps unless it is a recipe for a corpus under data/."""

import pathlib

import pytest

from ssmlab import launch
from ssmlab.data import Text

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / 'experiments').glob('*.py'))


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_quick_form(path, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  launch.main([str(path), '--print'])
  assert 'parameters' in capsys.readouterr().out
  assert path.read_text().startswith('"""') and 'python -m ssmlab.launch' in path.read_text()
  source = launch.resolve(launch.load_experiment(str(path)), []).data.source
  if getattr(source, 'path', '').startswith('data/'):        # a published recipe: its corpus is not here, its size not for this machine
    return
  changes = []
  if getattr(source, 'path', '').startswith('../shared/') and not (ROOT.parent / 'shared' / 'data').exists():
    (tmp_path / 'text.txt').write_text('It was a dark night.\n\n' * 2000)
    (tmp_path / 'table.tsv').write_text(''.join(f'a\t{i % 2}\t\tIt was {i}.\n' for i in range(200)))
    files = dict.fromkeys(('path', 'valid', 'test'), tmp_path / 'text.txt') if isinstance(source, Text) else dict(path=tmp_path / 'table.tsv')
    changes = [f'data.source.{name}={file}' for name, file in files.items()]
  launch.main([str(path), '--quick', '--workdir', str(tmp_path / 'run'), *changes])
  assert (tmp_path / 'run' / 'summary.json').exists() and 'valid/loss' in capsys.readouterr().out


def test_the_quick_starts_differ_in_the_model_only():
  """And their models are of one size, within a few percent."""
  configs = [launch.resolve(launch.load_experiment(str(p)), []) for p in FILES if p.stem.startswith('quickstart')]
  assert len(configs) == 4
  sizes = [c.model.size() for c in configs]
  assert max(sizes) / min(sizes) < 1.05
  for config in configs[1:]:
    assert [getattr(config, n) == getattr(configs[0], n) for n in ('data', 'task', 'optim', 'train', 'mesh', 'evals')] == [True] * 6
