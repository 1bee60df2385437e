"""Every golden file: numbers of the authors' code against ours, through the code of load_pretrained.  See compare.files for where they lie."""

import pathlib

import jax
import numpy as np
import pytest

from tests.golden.block import SYSTEMS as BLOCKS
from tests.golden.block import BlockRun
from tests.golden.calm import SYSTEMS as CALM
from tests.golden.calm import CALMRun
from tests.golden.compare import Golden, files
from tests.golden.encoder import run_of
from tests.golden.language_model import Run, has_adapter
from tests.golden.layer import SYSTEMS, LayerRun
from tests.golden.missing import MISSING
from tests.golden.sampling import SYSTEMS as SAMPLING
from tests.golden.sampling import SamplingRun


def examine(golden: Golden, record) -> None:
  """record: called with the row of the table."""
  system = golden.meta['system']
  if system in MISSING:
    record('golden', dict(file=golden.name, note='no adapter yet'))
    return
  assert system in (*SYSTEMS, *BLOCKS, *CALM, *SAMPLING) or has_adapter(system), f'{golden.name} is of system {system!r}, which nobody knows'
  runs = ((SYSTEMS, LayerRun), (BLOCKS, BlockRun), (CALM, CALMRun), (SAMPLING, SamplingRun))
  run = next((made for systems, made in runs if system in systems), run_of)(golden)
  with jax.default_matmul_precision('highest'):
    try:
      run.check()
    finally:
      record('golden', dict(file=golden.name, **run.errors.worst()))
  assert not run.errors.too_large(), '\n'.join(run.errors.too_large())


@pytest.mark.parametrize('path', files(), ids=lambda path: path.stem)
def test_golden(path, record_property):
  examine(Golden(path), record_property)


def own(name: str) -> Golden:
  return Golden(pathlib.Path(__file__).with_name('data') / f'{name}.json')


def test_unknown_system_fails():
  golden = own('retnet')
  golden.meta['system'] = 'retnet-of-mars'
  with pytest.raises(AssertionError, match="'retnet-of-mars', which nobody knows"):
    examine(golden, print)


def test_a_wrong_number_and_a_tensor_that_nobody_reads_fail():
  """One logit and one gradient off by a thousandth; a tensor of an unknown kind."""
  golden = own('retnet')
  for key in ('out/logits', 'grad/layers.0.ffn.fc1.weight'):
    golden.tensors[key] = golden.tensors[key].copy()
    golden.tensors[key].flat[7] += 1e-3 * np.abs(golden.tensors[key]).max()
  golden.tensors['out/surprise'] = np.zeros(3, np.float32)
  run = Run(golden)
  with pytest.raises(AssertionError, match='nothing looked at out/surprise'):
    run.check()
  wrong = {line.partition(':')[0] for line in run.errors.too_large()}
  assert wrong == {'out/logits', 'out/logits (with a state)', 'grad/layers.0.ffn.fc1.weight'}


@pytest.mark.parametrize('system', sorted(MISSING))
def test_what_is_missing_has_no_adapter(system):
  assert system not in (*SYSTEMS, *BLOCKS, *CALM, *SAMPLING) and not has_adapter(system), f'{system} has an adapter: take it off tests/golden/missing.py'


def test_own_files_are_there():
  assert {'llama-hf', 'recurrentgemma-hf', 'retnet', 'rwkv7'} <= {path.stem for path in files()}
