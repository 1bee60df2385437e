"""Scores of predictions against labels over a whole split: accuracy, F1, Matthews, Pearson, Spearman.  GLUE, arXiv 1804.07461, section 3."""

import dataclasses

import jax
import numpy as np

from ssmlab.core import mesh as meshes
from ssmlab.eval.heldout import place, share


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
  """Share of equal entries."""
  return float(np.mean(predicted == labels))


def f1(predicted: np.ndarray, labels: np.ndarray) -> float:
  """Harmonic mean of precision and recall of class 1; 0 where it is neither predicted nor there."""
  both = np.sum((predicted == 1) & (labels == 1))
  return float(2 * both / max(np.sum(predicted == 1) + np.sum(labels == 1), 1))


def matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
  """Matthews' correlation of two classes, 0 where one side is constant.  Biochim. Biophys. Acta 405 (1975), p. 442."""
  count = lambda p, y: float(np.sum((predicted == p) & (labels == y)))
  tp, tn, fp, fn = count(1, 1), count(0, 0), count(1, 0), count(0, 1)
  scale = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
  return float((tp * tn - fp * fn) / scale) if scale else 0.0


def pearson(predicted: np.ndarray, labels: np.ndarray) -> float:
  """Linear correlation, 0 where one side is constant."""
  x, y = predicted - np.mean(predicted), labels - np.mean(labels)
  scale = np.sqrt(np.sum(x * x) * np.sum(y * y))
  return float(np.sum(x * y) / scale) if scale else 0.0


def spearman(predicted: np.ndarray, labels: np.ndarray) -> float:
  """Pearson's correlation of the ranks, equal values sharing their mean rank."""
  return pearson(_ranks(predicted), _ranks(labels))


def _ranks(values: np.ndarray) -> np.ndarray:
  _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[where]


METRICS = dict(accuracy=accuracy, f1=f1, matthews=matthews, pearson=pearson, spearman=spearman)


@dataclasses.dataclass(frozen=True)
class Scores:
  """Metrics of the task's predictions over the whole split.

  metrics: of accuracy, f1, matthews, pearson, spearman.  split: 'valid' or 'test'.  every: steps between evaluations; 0: only at the end.
  """
  metrics: tuple[str, ...]
  split: str = 'valid'
  every: int = 0

  def __post_init__(self):
    for name in self.metrics:
      if name not in METRICS:
        raise ValueError(f'Scores: metric {name!r} is not one of {", ".join(METRICS)}')

  def run(self, experiment, mesh, params, final: bool) -> dict[str, float]:
    task, model, predicted, labels = experiment.task, experiment.model, [], []
    predict = jax.jit(lambda params, batch: (task.predict(model, params, batch), batch['labels'], (batch['segment_ids'] != 0).any(axis=1)),
                      out_shardings=meshes.replicated(mesh))
    with meshes.use(mesh):
      for batch in experiment.data.eval_batches(self.split, None, share(mesh, experiment.data.batch_size)):
        values, truth, here = map(np.asarray, predict(params, place(batch, mesh, experiment.data.batch_size)))
        predicted.append(values[here])
        labels.append(truth[here])
    predicted, labels = np.concatenate(predicted).astype(np.float64), np.concatenate(labels).astype(np.float64)
    return {name: METRICS[name](predicted, labels) for name in self.metrics}
