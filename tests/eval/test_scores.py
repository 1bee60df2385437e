"""Scores against definitions written another way, and against hand counts."""

import numpy as np
import pytest

from ssmlab.eval import scores

RANDOM = np.random.default_rng(0)
PREDICTED, LABELS = (RANDOM.integers(0, 2, 200).astype(float) for _ in range(2))


def test_hand_counts():
  """3 true positives, 1 false, 2 missed, 4 true negatives."""
  predicted, labels = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0]), np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
  assert scores.accuracy(predicted, labels) == 0.7 and scores.f1(predicted, labels) == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))
  assert scores.matthews(predicted, labels) == pytest.approx((3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6))


def test_matthews_is_the_correlation_of_two_classes():
  assert scores.matthews(PREDICTED, LABELS) == pytest.approx(np.corrcoef(PREDICTED, LABELS)[0, 1])
  assert scores.matthews(np.ones(5), np.array([0, 1, 0, 1, 1])) == 0


def test_spearman_with_ties():
  """Ranks by counting: those below, and half of those beside."""
  x, y = RANDOM.integers(0, 10, 60).astype(float), RANDOM.normal(size=60).round(1)
  rank = lambda v: np.array([np.sum(v < one) + (np.sum(v == one) + 1) / 2 for one in v])
  assert scores.spearman(x, y) == pytest.approx(np.corrcoef(rank(x), rank(y))[0, 1])
  assert scores.spearman(y, np.exp(y)) == pytest.approx(1) and scores.pearson(y, np.zeros(60)) == 0


def test_an_unknown_metric_is_named():
  with pytest.raises(ValueError, match="metric 'bleu' is not one of accuracy, f1, matthews, pearson, spearman"):
    scores.Scores(('bleu',))
