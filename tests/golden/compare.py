"""A golden file, and how close our numbers must come to it."""

import dataclasses
import hashlib
import json
import os
import pathlib

import numpy as np

from ssmlab.interop.files import read_safetensors

BESIDE = pathlib.Path(__file__).resolve().parents[2].parent / 'shared' / 'golden'
RELATIVE = 1e-4
LEAST = 5e-6               # some forty float32 roundings: sums in another order differ by that much, whatever the reference's own error
LEAST_GRADIENT = 1e-3      # of the largest gradient of the file: what is smaller is rounding (a key bias that softmax cancels)


def files() -> list[pathlib.Path]:
  """Every golden json of our own folder and of SSMLAB_GOLDEN's (default: beside the checkout), one with equal contents once."""
  named = os.environ.get('SSMLAB_GOLDEN')
  if named and not pathlib.Path(named).is_dir():
    raise ValueError(f'SSMLAB_GOLDEN={named} is not a folder')
  folders, found = [pathlib.Path(__file__).with_name('data'), pathlib.Path(named or BESIDE)], {}
  for path in (path for folder in folders for path in sorted(folder.glob('*.json'))):
    if path.with_suffix('.safetensors').is_file():
      found.setdefault(hashlib.sha256(path.read_bytes() + path.with_suffix('.safetensors').read_bytes()).digest(), path)
  return sorted(found.values(), key=lambda path: (path.stem, str(path)))


class Golden:
  """meta: the json.  tensors: {key: array}; `take` hands one out and remembers it, so that a test can tell what it has not looked at."""

  def __init__(self, path: pathlib.Path):
    self.name, self.meta = path.stem, json.loads(path.read_text(encoding='utf-8'))
    self.tensors, self.taken = read_safetensors(path.with_suffix('.safetensors')), set()

  def take(self, key: str) -> np.ndarray | None:
    self.taken.add(key)
    return self.tensors.get(key)

  def tokens(self, key: str) -> np.ndarray | None:
    array = self.take(key)
    return None if array is None else np.asarray(array, np.int32)

  def under(self, prefix: str) -> dict[str, np.ndarray]:
    """{rest of the key: array}."""
    return {key.removeprefix(prefix): self.take(key) for key in self.tensors if key.startswith(prefix)}

  def left(self) -> list[str]:
    return sorted(set(self.tensors) - self.taken)


@dataclasses.dataclass(frozen=True)
class Error:
  """kind: 'outputs' | 'state' | 'gradients'.  relative: largest difference over the golden tensor's largest value.  allowed: alike."""
  kind: str
  key: str
  relative: float
  allowed: float


class Errors:
  """Collects the comparisons of one file.

  Relative 1e-4 of the tensor's largest value; tighter where the json states the reference's own rounding error: ten times that.
  Where the reference has forms that differ by more than rounding (RetNet's normalisations; ours is the recurrent form's), up to ten
  times their stated difference.
  """

  def __init__(self, golden: Golden):
    meta, logits = golden.meta, golden.tensors.get('out/logits')
    noise, self._forms = meta.get('noise') or {}, meta.get('max_abs_differences_between_forms') or {}
    stated = [meta.get(name) for name in ('logits_max_abs_err_vs_float64', 'token_by_token_vs_block_max_abs', 'train_code_vs_pip_max_abs',
                                          'source_prefill_plus_stepwise_vs_full_max_abs_diff')]
    self._rounding = max((value for value in (*stated, noise.get('logits_max_abs_diff_f32_vs_f64')) if value), default=None)
    self._gradients = noise.get('worst_grad_rel_to_max')
    self._by_output = {f'out/{name}': value for name, value in (meta.get('f32_vs_f64_max_abs') or {}).items()}
    self._scale = 1.0 if logits is None else float(np.abs(logits).max())
    self.all: list[Error] = []

  def _between_forms(self, key: str) -> float:
    """Ten times the stated difference to another form, relative; the chunkwise form's counts for its own output only."""
    counts = [value for name, value in self._forms.items() if 'chunkwise' not in name or 'chunkwise' in key]
    return 10 * max(counts, default=0.0) / self._scale

  def output(self, key: str, mine, theirs, where=None, logits: bool = True) -> None:
    """where: bool, broadcast over the last axis: positions that count.  logits: the stated errors are of such numbers."""
    scale, allowed = float(np.abs(theirs).max()), RELATIVE
    rounding = self._by_output.get(key.partition(' ')[0], self._rounding if logits else None)
    if rounding:
      allowed = min(allowed, max(10 * rounding / scale, LEAST))
    self._add('outputs', key, mine, theirs, scale, max(allowed, self._between_forms(key)), where)

  def state(self, key: str, mine, theirs) -> None:
    self._add('state', key, mine, theirs, float(np.abs(theirs).max()), RELATIVE)

  def gradient(self, key: str, mine, theirs, largest: float) -> None:
    """largest: of all gradients in the file."""
    allowed = RELATIVE if not self._gradients else min(RELATIVE, max(10 * self._gradients, LEAST))
    allowed = max(allowed, self._between_forms(key))
    self._add('gradients', key, mine, theirs, max(float(np.abs(theirs).max()), LEAST_GRADIENT * largest), allowed)

  def _add(self, kind, key, mine, theirs, scale, allowed, where=None):
    mine = np.asarray(mine)
    assert mine.shape == theirs.shape, f'{key}: our shape {mine.shape}, golden {theirs.shape}'
    difference = np.abs(mine.astype(np.float64) - theirs)
    if where is not None:
      difference = difference[np.asarray(where, bool)]
    worst = difference.max(initial=0.0) / (scale or 1.0)
    self.all.append(Error(kind, key, float(worst) if np.isfinite(worst) else float('inf'), allowed))

  def worst(self) -> dict[str, float]:
    """Largest relative error by kind; kinds without a comparison are left out."""
    return {kind: max(e.relative for e in self.all if e.kind == kind) for kind in dict.fromkeys(e.kind for e in self.all)}

  def too_large(self) -> list[str]:
    return [f'{e.key}: relative error {e.relative:.2e}, allowed {e.allowed:.2e}' for e in self.all if not e.relative <= e.allowed]
