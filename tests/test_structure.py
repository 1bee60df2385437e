"""The house keeps its order: imports go one way, nothing happens at import, no room without a purpose."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(p.relative_to(ROOT) for p in (ROOT / 'ssmlab').rglob('*.py'))
# What each folder may import from, besides itself.
MAY = {'core': set(), 'ops': {'core'}, 'layers': {'core', 'ops'}, 'mixers': {'core', 'ops', 'layers'},
       'models': {'core', 'ops', 'layers', 'mixers'}, 'data': {'core'}, 'tasks': {'core', 'ops', 'layers', 'mixers', 'models'},
       'eval': {'core', 'ops', 'layers', 'mixers', 'models', 'tasks', 'data'}, 'interop': {'core', 'ops', 'layers', 'mixers', 'models'},
       'train': {'core', 'ops', 'layers', 'mixers', 'models', 'tasks', 'data', 'eval'}}


def imported(path: pathlib.Path) -> set[str]:
  """Names of ssmlab modules (and of `experiments`) that a file imports."""
  names = set()
  for node in ast.walk(ast.parse((ROOT / path).read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      names |= {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
    elif isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
  return {n for n in names if n.split('.')[0] in ('ssmlab', 'experiments')}


@pytest.mark.parametrize('path', FILES, ids=str)
def test_imports_go_one_way(path):
  room, names = path.parts[1], imported(path)
  assert not any(n.startswith('experiments') for n in names)
  if room in MAY:
    rooms = {n.split('.')[1] for n in names if n.count('.')} - {room}
    assert {r for r in rooms if (ROOT / 'ssmlab' / r).is_dir()} <= MAY[room]
  if room == 'ops':
    assert not any(n.startswith('ssmlab.core.config') for n in names)                 # an op never reads a config
  if room == 'mixers' and path.stem != '__init__':
    others = {n for n in names if n.startswith('ssmlab.mixers.')} - {'ssmlab.mixers.Mixer', 'ssmlab.mixers.Wrapper'}             # the bases
    assert not others and 'ssmlab.core.mesh' not in names                             # mixers share through ops and layers
  if room == 'train':
    assert not any(n.startswith('ssmlab.mixers') for n in names)


def test_no_room_without_a_purpose():
  assert not [p for p in FILES if p.stem in ('utils', 'util', 'helpers', 'misc', 'common')]
  assert not [p for p in FILES if len((ROOT / p).read_text().splitlines()) > 400]


def test_import_starts_no_device_and_needs_no_torch():
  code = ('import sys, ssmlab, ssmlab.launch, ssmlab.train.loop; from jax._src import xla_bridge as x; '
          'assert not x.backends_are_initialized(); assert "torch" not in sys.modules')
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 0, done.stderr
