"""Attention by the fused kernels that come with JAX: splash on a TPU, cuDNN on a GPU.  The same function as ops.attention.attend.

Splash (jax.experimental.pallas.ops.tpu.splash_attention) knows documents and windows and keeps no scores.  cuDNN
(jax.nn.dot_product_attention) is given documents and slopes as one array of scores per row, time x time, which the kernel then reads.
Neither is split along time: on a mesh with sequence > 1 every device gets whole rows of some heads.  Neither has been run on its hardware yet: the tests run
splash in interpret mode, and let XLA answer what cuDNN is asked.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ssmlab.core import mesh as meshes

PLATFORMS = {'splash': 'tpu', 'cudnn': 'gpu'}
_BLOCK = 512                                                 # queries and keys of one step of splash, its own choice


def check(implementation: str) -> None:
  """Raises ValueError where the platform of this process has no such kernel."""
  platform = meshes.platform()
  if platform != PLATFORMS[implementation]:
    raise ValueError(f"attention: implementation='{implementation}' runs on a {PLATFORMS[implementation].upper()}, this is a {platform.upper()}; "
                     "'xla' runs everywhere")


def splash(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, window: int | None, segments: jax.Array | None,
           interpret: bool = False) -> jax.Array:
  """As ops.attention.attend, without slopes.

  segments: int32 [batch, time]; tokens with equal numbers see each other.  interpret: without a TPU, slowly, for tests.
  Raises ValueError for a time that is no multiple of 128.
  """
  batch, time, heads, _ = q.shape
  if time % 128:
    raise ValueError(f"attention: implementation='splash' reads rows of a multiple of 128 tokens, not {time}")
  group = heads // k.shape[2]
  kernel = _kernel(time, group, causal, window, interpret)
  segments = jnp.zeros((batch, time), jnp.int32) if segments is None else segments

  def local(q, k, v, segments):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library
    q, k, v = (jnp.moveaxis(x, 1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    q = q.reshape(q.shape[0], -1, group, *q.shape[2:])
    of_head = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    y = jax.vmap(lambda q, k, v, ids: of_head(q, k, v, library.SegmentIds(ids, ids)))(q, k, v, segments)
    return jnp.moveaxis(y.reshape(y.shape[0], -1, *y.shape[3:]), 1, 2)
  return _on_mesh(local, q, k, v, segments)


@functools.lru_cache(maxsize=64)
def _kernel(time: int, group: int, causal: bool, window: int | None, interpret: bool):
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
  shape = time, time
  if window is not None:
    mask = masks.LocalMask(shape, (window - 1, 0 if causal else window - 1), 0)
  else:
    mask = masks.CausalMask(shape) if causal else masks.FullMask(shape)
  size = next(size for size in (_BLOCK, 256, 128) if time % size == 0)
  names = ('block_q', 'block_kv', 'block_kv_compute', 'block_q_dkv', 'block_kv_dkv', 'block_kv_dkv_compute', 'block_q_dq', 'block_kv_dq')
  with jax.ensure_compile_time_eval():                       # it is kept from call to call, so nothing of a trace may be in it
    return library.make_splash_mqa_single_device(masks.MultiHeadMask([mask] * group), block_sizes=library.BlockSizes(**dict.fromkeys(names, size)),
                                                 interpret=interpret)


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, window: int | None, slopes: tuple[float, ...] | None,
          segments: jax.Array | None) -> jax.Array:
  """As ops.attention.attend.  Raises ValueError for float32, which the kernel does not take."""
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    raise ValueError(f"attention: implementation='cudnn' computes in bfloat16 or float16, not {q.dtype}; set model.activations")
  steep = None if slopes is None else np.asarray(slopes, np.float32)

  def local(q, k, v, *more):
    mask = None
    if segments is not None:
      ids = more[0]
      mask = (ids[:, :, None] == ids[:, None, :])[:, None]
    bias = None
    if steep is not None:
      order = jnp.arange(q.shape[1])
      bias = (-more[-1][:, None, None] * jnp.abs(order[:, None] - order))[None].astype(q.dtype)
    sides = None if window is None else (window - 1, 0 if causal else window - 1)
    return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, is_causal=causal, local_window_size=sides, implementation='cudnn')
  more = [] if segments is None else [segments]
  return _on_mesh(local, q, k, v, *more, *([] if steep is None else [jnp.asarray(steep)]))


def _on_mesh(local, q, k, v, *more) -> jax.Array:
  """local(q, k, v, *more) on the shards of batch and heads of the mesh that is set.  more: arrays of the batch, or of the heads alone."""
  sizes = meshes.free_axes()
  if not sizes:
    return local(q, k, v, *more)
  rows = meshes.spec(k.shape, ('batch', None, 'row_heads', None), sizes)                # fewer heads than q's, of which every group stays together
  specs = [PartitionSpec(rows[0]) if x.ndim > 1 else PartitionSpec(rows[2]) for x in more]
  return jax.shard_map(local, in_specs=(rows, rows, rows, *specs), out_specs=rows, check_vma=False)(q, k, v, *more)
