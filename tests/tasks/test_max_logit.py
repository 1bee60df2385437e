"""RWKV's spring on the largest logit."""

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.core.params import init
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding
from ssmlab.mixers.rglru import RGLRU
from ssmlab.models import LM
from ssmlab.tasks import NextToken


def test_gradient_is_the_reference_codes():
  """What L2Wrap adds to the logits' gradient: weight / positions * largest logit at its place; in pieces as in one; not reported."""
  model = LM(vocab=11, width=8, pattern=(RGLRU(inner=8, heads=2),), depth=1, channel=GatedMLP(8), embedding=Embedding(size=1.0))
  params = init(jax.random.key(0), model.params())
  tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 11)
  batch = dict(tokens=tokens, targets=jnp.roll(tokens, -1, axis=1).at[:, -1].set(-1), segment_ids=jnp.ones_like(tokens))

  def spring(piece):
    total = lambda p, weight: NextToken(max_logit=weight, piece=piece).loss(model, p, batch, jax.random.key(0))
    (count, reported), (_, plain) = total(params, 1.0)[1], total(params, 0.0)[1]
    assert count == 10 and all(reported[name] == plain[name] for name in plain)
    gradient = jax.grad(lambda p: (total(p, 1.0)[0] - total(p, 0.0)[0]) / 10)(params)
    return np.asarray(gradient['head']['weight'])

  hidden, _ = model.hidden(params, tokens, segment_ids=batch['segment_ids'])
  logits = np.asarray(model.logits(params, hidden))[:, :-1]
  d_logits = np.where(logits == logits.max(axis=-1, keepdims=True), logits / 10, 0)
  expected = np.einsum('btd,btv->dv', np.asarray(hidden)[:, :-1], d_logits)
  for piece in (0, 4):
    np.testing.assert_allclose(spring(piece), expected, atol=1e-3 * np.abs(expected).max())
