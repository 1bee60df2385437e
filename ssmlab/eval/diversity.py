"""How different the tokens of a layer are from one another: the collapse measures of PanGu-pi, for any model, layer by layer.

PanGu-pi, arXiv 2312.17276, section 3 and figures 1 and 5; distance to a rank of one: Shi et al., arXiv 2202.08625, and Dong et al.,
Attention is not all you need, arXiv 2103.03404, section 2 (composite norm).  A deep network whose tokens grow alike has room for less.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

Row = dict[str, str | int | float]


@dataclasses.dataclass
class Moments:
  """What the measures need of all tokens of one layer, in float64: memory does not grow with the text."""
  count: int = 0
  total: np.ndarray | float = 0.0
  products: np.ndarray | float = 0.0
  rows: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)

  def add(self, x: np.ndarray) -> None:
    """x: [tokens, width], of one sequence."""
    x = np.asarray(x, np.float64)
    self.count, self.total, self.products = self.count + len(x), self.total + x.sum(axis=0), self.products + x.T @ x
    self.rows.append((projection_distance(x), float(np.linalg.norm(x)), rank_one_residual(x)))

  def spectrum(self) -> np.ndarray:
    """Squared singular values of all tokens, less their mean, the largest first."""
    mean = self.total / self.count
    return np.maximum(np.linalg.eigvalsh(self.products - self.count * np.outer(mean, mean))[::-1], 0)

  def measures(self, share: float) -> dict[str, float | int]:
    values, (distance, norm, residual) = self.spectrum(), np.array(self.rows).T
    return dict(rank=_rank(values, self.count), effective_dimension=_dimension(values, share), distance=float(distance.mean()),
                relative_distance=float((distance / norm).mean()), rank_one_residual=float(residual.mean()))


def projection_distance(x: np.ndarray) -> float:
  """min_m ||x - 1 m^T||_F: how far the tokens are from all being the same.  x: [tokens, width]."""
  return float(np.linalg.norm(x - x.mean(axis=0)))


def rank_one_residual(x: np.ndarray) -> float:
  """The same matrix in the norm sqrt(||.||_1 ||.||_inf), relative to x's.  x: [tokens, width]."""
  norm = lambda m: np.sqrt(np.abs(m).sum(axis=0).max() * np.abs(m).sum(axis=1).max())
  return float(norm(x - x.mean(axis=0)) / norm(x))


def effective_dimension(x: np.ndarray, share: float = 0.8) -> int:
  """Fewest principal components that hold `share` of the tokens' variance.  x: [tokens, width], many more tokens than width."""
  x = np.asarray(x, np.float64)
  return _dimension(np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2, share)


def _dimension(values: np.ndarray, share: float) -> int:
  return int(1 + np.sum(np.cumsum(values) < share * values.sum() * (1 - 1e-12)))


def _rank(values: np.ndarray, tokens: int) -> int:
  """Singular values above float32's rounding of the largest: the hidden states were computed in float32."""
  singular = np.sqrt(values)
  return int(np.sum(singular > singular[0] * max(len(values), tokens) * np.finfo(np.float32).eps))


def by_depth(model, params, batches: Iterable[Mapping[str, np.ndarray]], skip: int = 4, share: float = 0.8) -> list[Row]:
  """One row per layer: rank, effective dimension, distance (raw and relative, mean over rows) and rank-one residual.

  batches: dicts with int32 tokens and segment_ids [batch, time].  skip: first tokens of every row left out, as the authors do: they draw
  attention and with it most of the variance.  share: of the variance, for the effective dimension.
  Raises ValueError where the text holds fewer than two tokens per channel.
  """
  moments: dict[str, Moments] = {}
  inside = jax.jit(lambda params, tokens, ids: dict(model.walk(params, tokens, ids)))
  for batch in batches:
    for name, x in inside(params, batch['tokens'], batch['segment_ids']).items():
      for row, real in zip(np.asarray(x, np.float32), batch['segment_ids'] > 0):
        if (kept := row[real][skip:]).shape[0] > 1:
          moments.setdefault(name, Moments()).add(kept)
  read = next(iter(moments.values())).count if moments else 0
  if read < 2 * model.width:
    raise ValueError(f'{read} tokens are too few to tell the dimension of {model.width} channels; at least {2 * model.width} are needed')
  in_order = [name for name in moments if name == 'embedding'] + sorted((n for n in moments if n != 'embedding'), key=lambda n: int(n.split()[1]))
  return [dict(layer=name, **moments[name].measures(share)) for name in in_order]


PANELS = (('effective_dimension', 'components with 80% of the variance'), ('relative_distance', 'distance to all tokens equal, relative'),
          ('rank_one_residual', 'residual of rank one, relative'), ('rank', 'numerical rank'))


def plot(models: Mapping[str, Sequence[Row]], path: pathlib.Path) -> None:
  """The measures against depth, one line per model; models whose paths differ in the last part only, as a sweep's do, have one colour."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  figure = Figure(figsize=(11, 7), layout='constrained')
  FigureCanvasAgg(figure)
  for axes, (column, title) in zip(figure.subplots(2, 2).flat, PANELS):
    families = list(dict.fromkeys(_family(name, models) for name in models))
    for name, rows in models.items():
      index = families.index(_family(name, models))
      first = next(other for other in models if _family(other, models) == families[index]) == name
      axes.plot(range(len(rows)), [row[column] for row in rows], marker='o', color=f'C{index}', label=families[index] if first else None)
    axes.set(title=title, xlabel='blocks read', xticks=range(max(map(len, models.values()))))
    axes.set_ylim(0, 1.05 * max(row[column] for rows in models.values() for row in rows))
    axes.grid(alpha=0.3)
  axes.legend(frameon=False, loc='lower right')
  figure.savefig(path, dpi=110)


def _family(name: str, models: Mapping[str, Sequence[Row]]) -> str:
  """The folder of several of the models, or the model itself; the last part of the path."""
  path = pathlib.Path(name)
  return path.parent.name if sum(pathlib.Path(other).parent == path.parent for other in models) > 1 and path.name.isdigit() else path.name
