"""Causal convolution on a mesh: every device convolves whole rows of its own batch entries and channels.

The partitioner gathers an FFT's operand on every device, even where only batch or channels are split (jax issue 13081), so this is said by
`jax.shard_map`.  Where time is split, an all-to-all turns shards of time into shards of channels and another one turns the outputs back.

The alternative, a four-step FFT over shards of time, moves complex numbers at twice the length for the zero padding, and the filter too: at
[4, 4096, 256] over eight shards 6 all-to-alls of 25.7 MB per device forward, 12 of 51.4 MB with the gradient, where the swap has 2 of 4.2 MB and 4
of 8.4 (compiled HLO, jax 0.10.2).  It would keep all devices busy with fewer channels than shards, where the swap leaves some with zeros.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ssmlab.core import mesh as meshes


def on_mesh(local: Callable, u: jax.Array, h: jax.Array, segment_ids: jax.Array | None = None, split_time: bool = True) -> jax.Array:
  """local(u, h, segment_ids), on the shards of the mesh that is set; as it is without one, on one device and inside shard_map.

  u: [batch, time, channels, *shared].  h: [taps, channels].  segment_ids: [batch, time] or None.
  local: a function that works on each batch entry and each channel by itself and keeps the number of axes (its time may differ from u's unless
    split_time).
  An axis that does not divide stays whole, but channels are padded with zeros for the swap.
  """
  sizes = meshes.free_axes()
  if not sizes:
    return local(u, h, segment_ids)
  names = ('batch', 'time' if split_time else None, 'inner', *(None,) * (u.ndim - 3))
  time = meshes.spec(u.shape, names, sizes)[1]
  channels = u.shape[2]
  if time is not None:
    missing = -channels % (sizes[time] * (sizes.get('tensor', 1) if channels % sizes.get('tensor', 1) == 0 else 1))
    u, h = (jnp.pad(x, [(0, missing * (axis == of)) for axis in range(x.ndim)]) for x, of in ((u, 2), (h, 1)))
  rows = meshes.spec(u.shape, names, sizes)
  own = tuple(axis for axis in (rows[2], time) if axis is not None)          # what splits the channels of a whole row
  specs = rows, PartitionSpec(None, own or None), PartitionSpec(rows[0])
  if time is not None:
    local = _swapped(local, time)
  if segment_ids is None:
    return jax.shard_map(lambda u, h: local(u, h, None), in_specs=specs[:2], out_specs=rows)(u, h)[:, :, :channels]
  return jax.shard_map(local, in_specs=specs, out_specs=rows)(u, h, segment_ids)[:, :, :channels]


def _swapped(local: Callable, axis: str) -> Callable:
  """`local` between two all-to-alls: whole rows of a part of the channels instead of all channels of a part of the row."""
  def run(u, h, segment_ids):
    u = jax.lax.all_to_all(u, axis, split_axis=2, concat_axis=1, tiled=True)
    return jax.lax.all_to_all(local(u, h, segment_ids), axis, split_axis=1, concat_axis=2, tiled=True)
  return run
