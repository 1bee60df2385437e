"""Every golden file: numbers of the authors' code against ours, through the code of load_pretrained.  See compare.files for where they lie."""

import jax
import pytest
from compare import Golden, files
from language_model import Run, adapter
from missing import MISSING


@pytest.mark.parametrize('path', files(), ids=lambda path: path.stem)
def test_golden(path, record_property):
  golden = Golden(path)
  system = golden.meta['system']
  if system in MISSING:
    record_property('golden', dict(file=golden.name, note='no adapter yet'))
    return
  assert adapter(system), f'{path.name} is of system {system!r}, which nobody knows'
  run = Run(golden)
  with jax.default_matmul_precision('highest'):
    try:
      run.check()
    finally:
      record_property('golden', dict(file=golden.name, **run.errors.worst()))
  assert not run.errors.too_large(), '\n'.join(run.errors.too_large())


@pytest.mark.parametrize('system', sorted(MISSING))
def test_what_is_missing_has_no_adapter(system):
  assert adapter(system) is None, f'{system} has an adapter: take it off tests/golden/missing.py'


def test_own_files_are_there():
  assert {'llama-hf', 'recurrentgemma-hf', 'retnet', 'rwkv7'} <= {path.stem for path in files()}
