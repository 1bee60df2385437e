"""Distilling long filters to sums of exponentials: a state of constant size, and no longest document.

Massaroli et al., Laughing Hyena Distillery, arXiv 2310.18780, section 3.  They descend by a first-order method from random poles; here the
poles begin where the filter's Hankel matrix has them (Roy and Kailath, ESPRIT, 1989), and all of a filter's numbers then descend together
by Levenberg and Marquardt's method on the squared error of every tap.  In float64 on the host, filter by filter.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from ssmlab.layers.filters import LongFilter, ModalFilter

MOST = 64                # modes that are ever chosen by an error
_CELLS = 1 << 22         # float64 numbers of one work array
_STEPS = 40              # of the descent; it has converged or hardly moves by then


def distill(model, params, *, modes: int | None = None, error: float = 0.3, length: int = 2048) -> tuple[Any, Any, list[dict[str, Any]]]:
  """(model, params, report): the model with a ModalFilter wherever a mixer has a long filter of another kind; the other parameters are the same.

  modes: of every filter; None: as many as `order` says for `error`, the same for all layers at one place of the pattern, which share a shape.
  length: taps that are fitted where a filter has no longest length.
  report: one row per layer: `layer`, `modes`, and the relative L2 errors of its filters, `worst` and `median`, measured on the float32 taps.
  Raises ValueError where there is nothing to distil, for modes < 1, and for an error that MOST modes do not reach.
  """
  if modes is not None and modes < 1:
    raise ValueError(f'modes={modes} must be at least 1')
  if not 0 < error < 1:
    raise ValueError(f'error={error} must be above 0 and below 1')
  places = _places(model)
  if not places:
    kinds = ', '.join(sorted({type(block.mixer).__name__ for block in model.blocks}))
    raise ValueError(f'the model has no long filter to distil; its mixers are {kinds}')
  new = jax.tree.map(lambda leaf: leaf, params)
  pattern, report = list(model.pattern), []
  for place, parts in places.items():
    block = pattern[place]
    mixer = getattr(block, 'mixer', block)
    old = mixer._filter
    taps = {part: _layers_taps(old, params[part[0]][part[1]]['mixer']['filter'], part, old.max_length or length) for part in parts}
    number = modes or max(order(each, error) for layers in taps.values() for each in layers)
    made = ModalFilter(modes=number, by_fft=True)
    other = dataclasses.replace(mixer, **(dict(filter=made) if hasattr(mixer, 'filter') else dict(modes=number)))
    for (group, name, first), layers in taps.items():
      fitted = [fit(each, number) for each in layers]
      stacked = {key: np.stack([one[key] for one in fitted]) for key in fitted[0]} if group == 'blocks' else fitted[0]
      new[group][name]['mixer']['filter'] = jax.tree.map(jax.numpy.asarray, stacked)
      for repeat, (each, one) in enumerate(zip(layers, fitted)):
        report.append(dict(layer=first + repeat * len(model.pattern), modes=number) | _errors(made, one, each))
    pattern[place] = other if mixer is block else dataclasses.replace(block, mixer=other)
  return dataclasses.replace(model, pattern=tuple(pattern)), new, sorted(report, key=lambda row: row['layer'])


def _places(model) -> dict[int, list[tuple[str, str, int]]]:
  """{place in the pattern: [(group of parameters, name in it, index of the first layer)]} of what is to be distilled."""
  found = {}
  for group, (blocks, first) in model._groups().items():
    for place, block in enumerate(blocks):
      old = getattr(block.mixer, '_filter', None)
      if isinstance(old, LongFilter) and not isinstance(old, ModalFilter):
        found.setdefault((first + place) % len(model.pattern), []).append((group, str(place), first + place))
  return found


def _layers_taps(filter: LongFilter, params, part, length: int) -> list[np.ndarray]:
  """float64 [length, channels] per layer."""
  layers = jax.tree.leaves(params)[0].shape[0] if part[0] == 'blocks' else None
  taps = jax.jit(lambda params: filter.taps(params, length))
  each = [params] if layers is None else [jax.tree.map(lambda leaf: leaf[layer], params) for layer in range(layers)]
  return [np.asarray(taps(one), np.float64) for one in each]


def _errors(filter: ModalFilter, params, taps: np.ndarray) -> dict[str, float]:
  found = np.asarray(jax.jit(lambda params: filter.taps(params, len(taps)))(params), np.float64)
  norm = np.linalg.norm(taps, axis=0)
  relative = np.linalg.norm(found - taps, axis=0) / np.where(norm, norm, 1)
  return dict(worst=float(relative.max()), median=float(np.median(relative)))


def order(taps: np.ndarray, error: float) -> int:
  """The least number of modes n such that every filter's Hankel singular values s have |s[2n:]| <= error |s|.

  taps: [length, channels].  The Hankel matrix of a filter is h[1 + i + j], and its rank the number of the filter's poles; a mode is two, itself
  and its conjugate.  |s[2n:]| is the distance of the matrix from the matrices of rank 2n, so no n modes come closer in that norm, in which
  tap t counts t times.  Raises ValueError above MOST.
  """
  values, rest = singular_values(taps, 2 * MOST)
  tails = np.sqrt(np.maximum(rest[:, None] + np.cumsum(values[:, ::-1] ** 2, axis=1)[:, ::-1], 0))        # tails[:, k] = |s[k:]|
  tails = np.concatenate([tails, np.sqrt(np.maximum(rest, 0))[:, None]], axis=1)
  over = (tails > error * tails[:, :1]).any(axis=0)
  needed = int(np.nonzero(over)[0].max(initial=-1)) + 1
  if needed > values.shape[1] and values.shape[1] < _half(taps):
    left = (tails[:, -1] / np.maximum(tails[:, 0], 1e-300)).max()
    raise ValueError(f'error={error}: {MOST} modes leave {left:.2g} of a filter; allow that much, or name a number of modes')
  return max(-(-needed // 2), 1)


def singular_values(taps: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  """(the largest `count` Hankel singular values of each filter [channels, count or all], the sum of the squares of the others [channels])."""
  values = np.concatenate([np.abs(_hankel(h, count)[0]) for h in _chunks(taps, 4 * count)])
  half = _half(taps)
  lags = np.arange(1, 2 * half)
  squares = (np.minimum(lags, 2 * half - lags)[:, None] * taps[1:2 * half] ** 2).sum(axis=0)                # of the matrix's entries
  rest = squares - (values ** 2).sum(axis=1)
  return values, np.where(rest > 1e-13 * squares, rest, 0)


def fit(taps: np.ndarray, modes: int) -> dict[str, np.ndarray]:
  """Parameters of ModalFilter(modes) whose taps are close to these in the sum of squares; h[0] is exact, by `direct`.

  taps: [length, channels], length >= 4.  Returns float32 arrays [modes, channels], `direct` [channels].
  """
  if modes < 1 or len(taps) < 4:
    raise ValueError(f'modes={modes} must be at least 1, and the filter of {len(taps)} taps have at least 4')
  parts = [_fit(np.asarray(h, np.float64), modes) for h in _chunks(taps, 8 * modes)]
  log_rate, angle, residue = (np.concatenate(part).T for part in zip(*parts))
  direct = taps[0] - residue.real.sum(axis=0)
  found = dict(log_rate=log_rate, angle=angle, real=residue.real, imaginary=residue.imag, direct=direct)
  return {name: np.asarray(value, np.float32) for name, value in found.items()}


def _chunks(taps: np.ndarray, columns: int) -> list[np.ndarray]:
  """[channels, length] pieces for which `columns` numbers per tap fit the work array."""
  rows = np.ascontiguousarray(np.asarray(taps, np.float64).T)
  return np.array_split(rows, -(-rows.size * columns // _CELLS) if rows.size * columns < _CELLS * len(rows) else len(rows))


def _half(taps: np.ndarray) -> int:
  """Rows and columns of the Hankel matrix; of an odd number of taps behind the first all are in it."""
  return max(len(taps) // 2, 1)


def _hankel(h: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  """The `count` largest eigenvalues in size [channels, count], and eigenvectors [channels, half, count], of the Hankel matrices of h[:, 1:].

  The matrices are symmetric, so these are the singular values but for signs.  They are never made: two rounds of subspace iteration with
  products by FFT (Halko, Martinsson and Tropp, arXiv 0909.4061).
  """
  half = h.shape[1] // 2
  line = h[:, 1:2 * half]
  size = min(count + 12, half)
  spectrum = np.fft.rfft(line)[..., None, :]

  def times(x):
    return np.fft.irfft(spectrum * np.conj(np.fft.rfft(x.swapaxes(1, 2), 2 * half - 1)), 2 * half - 1)[..., :half].swapaxes(1, 2)
  basis = np.broadcast_to(np.random.default_rng(0).normal(size=(half, size)) if size < half else np.eye(half), (len(h), half, size))
  for _ in range(3 if size < half else 0):
    basis = np.linalg.qr(times(basis))[0]
  small = basis.swapaxes(1, 2) @ times(basis)
  values, vectors = np.linalg.eigh((small + small.swapaxes(1, 2)) / 2)
  first = np.argsort(-np.abs(values), axis=1)[:, :count]
  return np.take_along_axis(values, first, axis=1), basis @ np.take_along_axis(vectors, first[:, None], axis=2)


def _fit(h: np.ndarray, modes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(log_rate, angle, complex residue), [channels, modes] each, of filters h [channels, length] from h[1] on."""
  scale = np.linalg.norm(h[:, 1:], axis=1, keepdims=True)
  target = (h / np.where(scale, scale, 1))[:, 1:]
  log_rate, angle = _first_poles(h, target, modes)
  x = np.concatenate([log_rate, angle, *_residues(log_rate, angle, target)], axis=1)
  log_rate, angle = np.split(_descend(x, target), 4, axis=1)[:2]
  log_rate, angle = (part.astype(np.float32).astype(np.float64) for part in (log_rate, angle))             # what the rounding moves, the residues mend
  real, imaginary = _residues(log_rate, angle, target)
  return log_rate, angle, scale * (real + 1j * imaginary)


def _first_poles(h: np.ndarray, target: np.ndarray, modes: int) -> tuple[np.ndarray, np.ndarray]:
  """Of the 2 modes poles of the Hankel matrices' leading subspaces, a conjugate pair being one mode, those with most in the filter."""
  _, vectors = _hankel(h, min(2 * modes, h.shape[1] // 2 - 1))
  upper, lower = vectors[:, :-1], vectors[:, 1:]
  gram = upper.swapaxes(1, 2) @ upper
  poles = np.linalg.eigvals(np.linalg.solve(gram + 1e-12 * np.eye(gram.shape[-1]), upper.swapaxes(1, 2) @ lower))
  angle = np.angle(poles)
  rate = np.abs(np.log(np.maximum(np.abs(poles), 1e-30)))                                                  # outside the circle: reflected
  log_rate = np.clip(np.log(np.maximum(rate, 1e-30)), *_log_rates(target))
  spare = poles.imag < -1e-9                                                                               # the conjugates
  if (missing := 2 * modes - poles.shape[1]) > 0:
    pad = lambda x, fill: np.pad(x, ((0, 0), (0, missing)), constant_values=fill)
    log_rate, angle, spare = pad(log_rate, 0.0), pad(angle, 0.0), pad(spare, True)
  real, imaginary = _residues(log_rate, angle, target, spare)
  energy = np.where(spare, -1.0, (real ** 2 + imaginary ** 2) / -np.expm1(-2 * np.exp(log_rate)))
  first = np.argsort(-energy, axis=1)[:, :modes]
  return tuple(np.take_along_axis(part, first, axis=1) for part in (log_rate, angle))


def _log_rates(target: np.ndarray) -> tuple[float, float]:
  """Slowest and fastest decay: a hundred times the filter's length, and 0.05 a tap, below which a mode is but one tap of a large residue."""
  return float(np.log(0.01 / target.shape[1])), float(np.log(3.0))


def _waves(log_rate: np.ndarray, angle: np.ndarray, length: int) -> np.ndarray:
  """p^t for t = 1 .. length.  Complex [channels, modes, length]."""
  return np.exp((-np.exp(log_rate) + 1j * angle)[..., None] * np.arange(1, length + 1))


def _residues(log_rate, angle, target, spare=None) -> tuple[np.ndarray, np.ndarray]:
  """The residues' real and imaginary parts that are best for these poles, `spare` ones left out."""
  waves = _waves(log_rate, angle, target.shape[1])
  if spare is not None:
    waves[spare] = 0
  basis = np.concatenate([waves.real, -waves.imag], axis=1)
  gram = basis @ basis.swapaxes(1, 2) + _charge(target) * np.eye(basis.shape[1])
  return tuple(np.split(np.linalg.solve(gram, basis @ target[..., None])[..., 0], 2, axis=1))


def _charge(target: np.ndarray) -> float:
  """What a squared residue costs: the squared rounding of float32 over all taps.  Without it large residues cancel in float64 and not in float32."""
  return np.finfo(np.float32).eps ** 2 * target.shape[1]


def _descend(x: np.ndarray, target: np.ndarray) -> np.ndarray:
  """Levenberg and Marquardt from x = (log_rate, angle, real, imaginary) [channels, 4 modes]: only steps that lower the error are taken."""
  charges = np.repeat([0.0, _charge(target)], x.shape[1] // 2)[None]                                      # of the residues only
  poles = x.shape[1] // 2
  damping = np.full((len(x), 1), 1e-3)
  error, slopes = _residual(x, target)
  loss = (error ** 2).sum(axis=1) + (charges * x ** 2).sum(axis=1)
  idle = 0
  for _ in range(_STEPS):
    if idle == 3:
      break
    gram = slopes @ slopes.swapaxes(1, 2) + charges[:, None] * np.eye(x.shape[1])
    diagonal = np.diagonal(gram, axis1=1, axis2=2)
    floor = damping * diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
    step = np.linalg.solve(gram + floor[..., None] * np.eye(gram.shape[-1]), slopes @ error[..., None] + (charges * x)[..., None])[..., 0]
    tried = x - step * np.minimum(1, 1 / np.abs(step[:, :poles]).max(axis=1, keepdims=True))                # no pole's rate changes by more than e
    tried[:, :poles // 2] = np.clip(tried[:, :poles // 2], *_log_rates(target))
    other, slopes_there = _residual(tried, target)
    there = (other ** 2).sum(axis=1) + (charges * tried ** 2).sum(axis=1)
    better = there < loss                                                                                  # false for what is not finite
    idle = idle + 1 if (np.where(better, there, loss) > 0.98 * loss).all() else 0
    x, loss, error = np.where(better[:, None], tried, x), np.where(better, there, loss), np.where(better[:, None], other, error)
    slopes = np.where(better[:, None, None], slopes_there, slopes)
    damping = np.clip(np.where(better[:, None], damping / 5, damping * 4), 1e-12, 1e9)
  return x


def _residual(x: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(filter - target [channels, length], its derivatives by x [channels, 4 modes, length])."""
  log_rate, angle, real, imaginary = np.split(x, 4, axis=1)
  waves = _waves(log_rate, angle, target.shape[1])
  weighted = (real + 1j * imaginary)[..., None] * waves
  moved = weighted * np.arange(1, target.shape[1] + 1)
  slopes = np.concatenate([-np.exp(log_rate)[..., None] * moved.real, -moved.imag, waves.real, -waves.imag], axis=1)
  return weighted.real.sum(axis=1) - target, slopes
