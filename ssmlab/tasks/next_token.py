"""Next-token prediction with the logits computed in pieces, so that a large vocabulary never stands in memory whole."""

import dataclasses

import jax
import jax.numpy as jnp

LOGITS_AT_ONCE = 2 ** 24                                     # entries: 64 MiB in float32


def cross_entropy(head, x: jax.Array, targets: jax.Array, vocab: int, piece: int = 0) -> dict[str, jax.Array]:
  """Sums over the positions that have a target: nats, squared log-partition, squared largest logit, its hits, and their count.

  head: function [batch, piece, width] -> float32 logits [batch, piece, vocab].
  x: [batch, time, width].  targets: int32 [batch, time], negative where there is none.
  piece: positions of each row per piece; 0 chooses one that keeps the logits under 64 MiB.  The backward pass recomputes each piece.
  """
  batch, time, width = x.shape
  piece = min(piece or max(LOGITS_AT_ONCE // (batch * vocab), 1), time)
  pieces = -(-time // piece)
  fill = pieces * piece - time
  x = jnp.pad(x, ((0, 0), (0, fill), (0, 0))).reshape(batch, pieces, piece, width).swapaxes(0, 1)
  targets = jnp.pad(targets, ((0, 0), (0, fill)), constant_values=-1).reshape(batch, pieces, piece).swapaxes(0, 1)

  def one(x, targets):
    logits = head(x)
    partition = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    largest = jnp.max(logits, axis=-1)
    weight = (targets >= 0).astype(logits.dtype)
    hits = (picked >= largest).astype(logits.dtype)
    return dict(nats=jnp.sum((partition - picked) * weight), partition=jnp.sum(jnp.square(partition) * weight),
                largest=jnp.sum(jnp.square(largest) * weight), hits=jnp.sum(hits * weight), count=jnp.sum(weight))
  if pieces == 1:
    return one(x[0], targets[0])
  add = lambda total, xs: (jax.tree.map(jnp.add, total, jax.checkpoint(one)(*xs)), None)
  start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, x[0], targets[0]))
  return jax.lax.scan(add, start, (x, targets))[0]


@dataclasses.dataclass(frozen=True)
class NextToken:
  """mean over targets of -log p(target) + z_loss * (log sum exp logits)^2 + max_logit / 2 * (largest logit)^2.

  z_loss: weight of the squared log-partition, 1e-4 in PaLM (arXiv 2204.02311, section 5).
  max_logit: slope of a spring on the largest logit, 1e-4 in RWKV (BlinkDL/RWKV-LM, class L2Wrap).
  piece: positions of each row whose logits are in memory at once; 0 chooses.
  A task's `loss` returns sums, so that micro-batches and hosts add up to exactly the whole batch's mean.
  """
  z_loss: float = 0.0
  max_logit: float = 0.0
  piece: int = 0

  def loss(self, model, params, batch, key: jax.Array):
    """(sum to differentiate, (count to divide by, sums to report)).

    batch: tokens, targets (negative: none), segment_ids, each int32 [batch, time].  key: unused here.
    """
    x, _ = model.hidden(params, batch['tokens'], segment_ids=batch['segment_ids'])
    sums = cross_entropy(lambda h: model.logits(params, h), x, batch['targets'], model.vocab, self.piece)
    total = sums['nats'] + self.z_loss * sums['partition'] + 0.5 * self.max_logit * sums['largest']
    return total, (sums['count'], dict(loss=sums['nats'], accuracy=sums['hits']))
