"""Next-token prediction with the logits computed in pieces, so that a large vocabulary never stands in memory whole."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ssmlab.core import mesh as meshes

LOGITS_AT_ONCE = 2 ** 24                                     # entries on a device: 64 MiB in float32


def cross_entropy(logits, params, x: jax.Array, targets: jax.Array, vocab: int, piece: int = 0) -> dict[str, jax.Array]:
  """Sums over the positions that have a target: nats, squared log-partition, squared largest logit, its hits, and their count.

  logits: function (params, [batch, piece, width]) -> float32 [batch, piece, vocab]; of params it reads `embedding` and `head`.
  x: [batch, time, width].  targets: int32 [batch, time], negative where there is none.
  piece: positions of each row per piece; 0 chooses one that keeps a device's logits under 64 MiB.  The backward pass recomputes each piece.

  On a mesh every device goes through its own rows and times: the weights that `logits` reads are gathered once before, and their gradient is
  added up once after.  Left to the compiler, both would happen in every piece.
  """
  sizes = meshes.free_axes()
  split = meshes.spec(targets.shape, ('batch', 'time'), sizes)
  axes = tuple(axis for entry in split for axis in ((entry,) if isinstance(entry, str) else entry or ()))
  rows, times = (size // math.prod(sizes[axis] for axis in axes if axis in meshes.RULES[name]) for size, name in zip(targets.shape, ('batch', 'time')))
  piece = min(piece or max(LOGITS_AT_ONCE // (rows * vocab), 1), times)
  if not axes:
    return _in_pieces(lambda h: logits(params, h), x, targets, piece)
  ends = {name: params[name] for name in ('embedding', 'head') if name in params}

  def local(ends, x, targets):
    ends = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axes, to='varying'), ends)
    return jax.lax.psum(_in_pieces(lambda h: logits(ends, h), x, targets, piece, axes), axes)
  whole = PartitionSpec()
  return jax.shard_map(local, in_specs=(whole, PartitionSpec(*split, None), split), out_specs=whole, axis_names=set(axes))(ends, x, targets)


def _in_pieces(head, x: jax.Array, targets: jax.Array, piece: int, axes: tuple[str, ...] = ()) -> dict[str, jax.Array]:
  """The sums over the rows and times of one device; axes: of the mesh, along which they differ."""
  batch, time, width = x.shape
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
  start = jax.lax.pcast(start, axes, to='varying') if axes else start
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
    sums = cross_entropy(model.logits, params, x, batch['targets'], model.vocab, self.piece)
    total = sums['nats'] + self.z_loss * sums['partition'] + 0.5 * self.max_logit * sums['largest']
    return total, (sums['count'], dict(loss=sums['nats'], accuracy=sums['hits']))
