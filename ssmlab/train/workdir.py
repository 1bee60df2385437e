"""The folder of a run: what is in it before step 1, and how a finished or interrupted one is opened again."""

import datetime
import importlib
import importlib.util
import json
import pathlib
import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from ssmlab.core import mesh as meshes
from ssmlab.core.config import UserError, dump, get, paths
from ssmlab.train import hosts
from ssmlab.train.checkpoint import Checkpoints, like
from ssmlab.train.experiment import Experiment

PACKAGES = ('ssmlab', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'chex', 'numpy')
PEAK_FLOPS = {'TPU v4': 275e12, 'TPU v5 lite': 197e12, 'TPU v5': 459e12, 'TPU v6 lite': 918e12,
              'NVIDIA A100': 312e12, 'NVIDIA H100': 989e12, 'NVIDIA H200': 989e12}


def peak_flops() -> float | None:
  """Dense bfloat16 FLOP/s of all devices by the makers' data sheets; None where the kind is not in the table."""
  kind = jax.devices()[0].device_kind
  known = [peak for name, peak in PEAK_FLOPS.items() if kind == name or name.startswith('NVIDIA') and kind.startswith(name)]
  return known[0] * jax.device_count() if known else None


def write(path: pathlib.Path, text: str) -> None:
  """Replaces a file at once: a reader sees the old or the new text."""
  half = path.with_name(path.name + '.tmp')
  half.write_text(text)
  half.replace(path)


def load_module(path: pathlib.Path):
  """Runs a Python file (an experiment or a workdir's config.py) with the folders it may import from on the path."""
  path = path.resolve()
  for folder in (path.parent, path.parent.parent):
    if str(folder) not in sys.path:
      sys.path.insert(0, str(folder))
  package = path.parent.name
  name = f'{package}.{path.stem}' if package == 'experiments' else path.stem if path.name != 'config.py' else f'config_of_{abs(hash(path))}'
  if name in sys.modules and getattr(sys.modules[name], '__file__', None) == str(path):
    return sys.modules[name]
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  try:
    spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[name]                                    # half of it is not the module
    raise
  return module


def open_config(path: pathlib.Path) -> Experiment:
  """The experiment of a workdir.  Raises UserError where there is none, or one that this version cannot read."""
  file = path / 'config.py'
  if not file.exists():
    raise UserError(f'{path} is not a workdir: it has no config.py')
  try:
    return load_module(file).config()
  except (AttributeError, ImportError, TypeError, ValueError) as error:              # a class, field or value that is not there, or no more
    record = path / 'environment.json'
    revision = (json.loads(record.read_text()).get('git') or {}).get('revision') if record.exists() else None
    raise UserError(f'{file} does not fit this version of ssmlab ({error}); revision {revision or "unknown"} wrote it') from error


def prepare(experiment: Experiment, path: pathlib.Path) -> pathlib.Path:
  """Makes the folder and writes config.py and environment.json; a folder that holds a run of another model is refused."""
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f'workdir {path} cannot be made: {error.strerror}') from error
  if (path / 'config.py').exists():
    _same_model(open_config(path).model, experiment.model, path)
  fingerprint = experiment.data.fingerprint()
  for name, evaluator in experiment.evals:
    split = getattr(evaluator, 'split', None)
    if split is not None and fingerprint.get(split) is None:
      raise UserError(f'evals: {name!r} reads the split {split!r}, which is empty in {experiment.data.source}')
  hosts.agree('experiment and workdir', f'{experiment!r} {path.resolve()}')
  hosts.agree('data', json.dumps(fingerprint))
  if hosts.lead():
    write(path / 'config.py', dump(experiment, _kept_beside(experiment, path)))
    write(path / 'environment.json', json.dumps(environment(fingerprint), indent=1))
  hosts.wait('workdir')
  if not (path / 'config.py').exists():
    raise UserError(f'workdir {path} is not the one that host 0 wrote; it must be a folder that all hosts share')
  return path


def _same_model(before: Any, now: Any, path: pathlib.Path) -> None:
  if before == now:
    return
  known = set(paths(now))
  for field in paths(before):
    old, new = get(before, field), get(now, field) if field in known else 'absent'
    if old != new:
      raise UserError(f'{path} holds a run of another model (model.{field} is {old!r} there and {new!r} here); choose another --workdir')
  raise UserError(f'{path} holds a run of another model ({type(before).__name__} there); choose another --workdir')


def _kept_beside(experiment: Experiment, path: pathlib.Path) -> dict[str, str]:
  """Copies experiment files that define classes of the config into the workdir; {module now: module there}."""
  renamed = {}
  for module in {type(part).__module__ for part in _parts(experiment)}:
    file = getattr(sys.modules.get(module), '__file__', None)
    if module == '__main__' or module.startswith('ssmlab.') or not file or pathlib.Path(file).parent == path.resolve():
      continue
    renamed[module] = pathlib.Path(file).stem
    write(path / pathlib.Path(file).name, pathlib.Path(file).read_text())
  return renamed


def _parts(node):
  if hasattr(node, '__dataclass_fields__'):
    yield node
    node = tuple(getattr(node, name) for name in node.__dataclass_fields__)
  if isinstance(node, tuple):
    for child in node:
      yield from _parts(child)


def environment(fingerprint: dict[str, Any]) -> dict[str, Any]:
  """Versions, revision, devices, data: what a number needs beside it."""
  versions = {}
  for name in PACKAGES:
    try:
      versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      versions[name] = 'not installed'
  git = lambda *args: subprocess.run(['git', *args], capture_output=True, text=True, cwd=pathlib.Path(__file__).parent)
  revision = git('rev-parse', 'HEAD')
  changed = bool(git('status', '--porcelain', '-uno').stdout.strip()) if revision.returncode == 0 else None
  return dict(started=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'), command=sys.argv,
              python=sys.version.split()[0], platform=platform.platform(), versions=versions,
              git=dict(revision=revision.stdout.strip() or None, changed=changed),
              devices=[f'{d.device_kind} ({d.platform})' for d in jax.devices()], processes=jax.process_count(), data=fingerprint)


def refuse_run(path: pathlib.Path) -> None:
  """Raises UserError where the folder holds a run."""
  if (path / 'config.py').exists() or (path / 'checkpoints').exists():
    raise UserError(f'{path} already holds a run; name another folder')


def save(experiment: Experiment, params, step: int, path: pathlib.Path) -> None:
  """Makes a workdir whose one checkpoint has these parameters and a fresh optimiser.  Raises UserError where there already is a run."""
  from ssmlab.train.loop import trainer                      # the loop imports this module
  refuse_run(path)
  mesh = meshes.make()
  state = trainer(experiment, mesh).fresh(experiment.train.seed)
  state = state.replace(step=jnp.int32(step), params=jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), params, state.params))
  prepare(experiment, path)
  checkpoints = Checkpoints(path, experiment.train.keep)
  checkpoints.save(state, step, dict(seconds=0.0, tokens=0), {})
  checkpoints.wait()
  checkpoints.close()


def load(path: pathlib.Path) -> tuple[Experiment, Any, int]:
  """(experiment, parameters, step) of a workdir's newest checkpoint, on one mesh of the devices here."""
  from ssmlab.train.loop import trainer                      # the loop imports this module
  experiment = open_config(path)
  mesh = meshes.make()
  pieces = trainer(experiment, mesh)
  checkpoints = Checkpoints(path, experiment.train.keep)
  step = checkpoints.latest()
  if step is None:
    raise UserError(f'{path} has no complete checkpoint yet')
  state, _ = checkpoints.restore(like(jax.eval_shape(pieces.fresh, 0), pieces.shardings()), step)
  checkpoints.close()
  return experiment, state.params, step
