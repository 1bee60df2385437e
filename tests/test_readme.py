"""The README's mixer is a mixer: it passes the contract and trains; its experiment resolves."""

import importlib.util
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def block(mark: str) -> str:
  """The code block after <!-- mark -->."""
  return re.search(rf'<!-- {mark} -->\n```\w+\n(.*?)```', README, re.DOTALL).group(1)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """The example as a file that can be imported."""
  path = tmp_path_factory.mktemp('readme') / 'readme_mixer.py'
  path.write_text(block('mixer'))
  spec = importlib.util.spec_from_file_location('readme_mixer', path)
  module = importlib.util.module_from_spec(spec)
  sys.modules['readme_mixer'] = module
  spec.loader.exec_module(module)
  return module


def test_it_is_short_and_touches_one_file():
  assert len(block('mixer').splitlines()) <= 40


def test_it_passes_the_contract(written):
  """The same tests as every mixer of the folder."""
  spec = importlib.util.spec_from_file_location('contract', ROOT / 'tests' / 'mixers' / 'test_contract.py')
  contract = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(contract)
  case = contract.Case(written.TINY)
  tests = [test for name, test in vars(contract).items() if name.startswith('test_')]
  assert len(tests) >= 9
  for test in tests:
    test(case)


def test_it_trains(written, tmp_path):
  from ssmlab.core.config import override
  from ssmlab.data import Data, Text
  from ssmlab.models import LM
  from ssmlab.train import Experiment, Train, loop, workdir
  (tmp_path / 'a.txt').write_text(''.join(f'{n} abcd efgh\n' for n in range(3000)))
  experiment = Experiment(model=LM(vocab=256, width=16, pattern=(written.TINY,), depth=1), data=Data(Text(str(tmp_path / 'a.txt')), length=32, batch_size=4),
                          train=Train(steps=30, checkpoint_every=0))
  summary = loop.run(override(experiment, 'optim.peak_lr', 0.03), tmp_path / 'run', quiet=True)
  assert summary['valid/loss'] < 2.0
  assert (tmp_path / 'run' / 'readme_mixer.py').exists() and workdir.open_config(tmp_path / 'run').model == experiment.model


def test_its_experiment_resolves(tmp_path):
  from ssmlab.launch import load_experiment, resolve
  source = next(code for code in re.findall(r'```python\n(.*?)```', README, re.DOTALL) if 'twice as deep' in code)
  (tmp_path / 'deep.py').write_text(source)
  sys.path.insert(0, str(ROOT))
  module = load_experiment(str(tmp_path / 'deep.py'))
  assert resolve(module, []).model.depth == 8 and len(module.sweep()) == 3


def test_every_file_it_names_exists():
  for name in re.findall(r'`((?:mixers|layers|ops|experiments|colab|ssmlab)/[\w/]+\.(?:py|ipynb))`', README) + re.findall(r'`(\w+\.py)`', README):
    assert any((ROOT / folder / name).exists() for folder in ('', 'ssmlab', 'experiments')) or name == 'config.py', name
