"""Causal convolution with one long filter per channel: the operator of Hyena, H3 and long-convolution models."""

import functools

import jax
import jax.numpy as jnp

from ssmlab.ops import segments
from ssmlab.ops.causal_convolution import direct, documents, fourier, overlap_add
from ssmlab.ops.causal_convolution.sharded import on_mesh

IMPLEMENTATIONS = ('auto', 'direct', 'fft', 'overlap_add')
_FORMS = {'direct': direct, 'fft': fourier, 'overlap_add': overlap_add, 'halving': documents}


def causal_convolution(u: jax.Array, h: jax.Array, *, segment_ids: jax.Array | None = None, implementation: str = 'auto') -> jax.Array:
  """y[b, t] = sum over j <= t of the same document of h[t - j] u[b, j], per channel.

  u: [batch, time, channels, *shared].
  h: [taps, channels], float32; every entry of the shared axes is convolved with its channel's filter.  Taps beyond `time` are out of reach,
    lags beyond `taps` count zero.
  segment_ids: int32 [batch, time] or None, see `ops.segments`.  Padding (id 0) is not read and its y is 0.
  implementation: 'direct' is the definition, lag by lag; 'fft' transforms the whole row; 'overlap_add' transforms blocks of it, in less memory
    where the filter is much shorter than the row; 'auto' is direct up to 4 taps or 32 tokens and fft beyond.  With segment_ids, what would
    transform goes by recursive halving instead, exact and about three times as costly (see `documents`).

  Returns y in u's shape and dtype.  Arithmetic is float32 (float64 where an input is).  FFTs err in proportion to the largest value of a row,
  about 3e-7 of it, also at earlier tokens.  Reverse-mode gradients only.
  Raises ValueError on an unknown implementation and on shapes that do not fit.
  Source: Poli et al., Hyena Hierarchy, arXiv 2302.10866, section 3.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'implementation={implementation!r} is not one of {", ".join(IMPLEMENTATIONS)}')
  _check_shapes(u, h, segment_ids)
  if not u.size:
    return u
  return on_mesh(functools.partial(_local, implementation), u, h, segment_ids)


def _local(implementation: str, u: jax.Array, h: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
  """On one device."""
  batch, time, channels = u.shape[:3]
  dtype = jnp.result_type(jnp.float32, u, h)
  rows = jnp.moveaxis(u.astype(dtype).reshape(batch, time, channels, -1), 1, -1)
  filters = h[:time].astype(dtype).T[:, None]
  is_real = None if segment_ids is None else segments.real(segment_ids)[:, None, None]
  document = None if segment_ids is None else segments.documents(segment_ids)
  masked = lambda x: x if is_real is None else jnp.where(is_real, x, 0)
  y = masked(_convolve(_chosen(implementation, time, filters.shape[-1], segment_ids is not None), masked(rows), filters, document))
  return jnp.moveaxis(y, -1, 1).reshape(u.shape).astype(u.dtype)


def _chosen(implementation: str, time: int, taps: int, packed: bool) -> str:
  """The form."""
  if implementation == 'direct' or (implementation == 'auto' and (taps <= _DIRECT or time <= _SHORT)):
    return 'direct'
  if packed:
    return 'halving'
  return 'fft' if implementation == 'auto' else implementation


# Batch 4, 128 channels, forward and with the gradient, ms: 512 tokens, 4 taps: direct 0.8, 1.5, fft 1.1, 2.3; 16 taps: 1.5, 6.6 against 1.3, 2.4.
# 4096 tokens, 4 taps: 6.4, 22 against 13, 21; 8 taps: 8.0, 33 against 13, 22.  Blocks won nowhere by more than noise: 65536 tokens, 64 channels, 128
# taps: overlap_add 60, 139 against 62, 110; 8192 taps: 89, 180 against 83, 132.  2 cores CPU, November 2026; not measured elsewhere.
_DIRECT = 4                # taps
_SHORT = 32                # tokens: costs nothing, and is exactly causal, where an FFT gives earlier outputs gradients of 1e-9 instead of 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(form: str, u: jax.Array, h: jax.Array, document: jax.Array | None) -> jax.Array:
  return _FORMS[form].forward(u, h, document)


def _convolve_rule(form, *arguments):
  return _convolve(form, *arguments), arguments


def _convolve_gradient(form, saved, dy):
  u, h, document = saved
  axes = tuple(sorted(_varying(dy) - _varying(h)))        # inside shard_map: the axes along which h is the same everywhere
  du, dh = _FORMS[form].backward(u, jax.lax.pcast(h, axes, to='varying') if axes else h, document, dy)
  return _total(du, u), _total(dh, h), None


_convolve.defvjp(_convolve_rule, _convolve_gradient)


def _varying(x: jax.Array) -> frozenset[str]:
  """The mesh axes along which x differs; none outside shard_map."""
  return jax.typeof(x).manual_axis_type.varying


def _total(gradient: jax.Array, of: jax.Array) -> jax.Array:
  """The sum over the mesh axes along which `of` is the same everywhere."""
  axes = tuple(sorted(_varying(gradient) - _varying(of)))
  return jax.lax.psum(gradient, axes) if axes else gradient


def _check_shapes(u, h, segment_ids) -> None:
  if u.ndim < 3:
    raise ValueError(f'u has shape {u.shape}; expected [batch, time, channels, *shared]')
  if h.ndim != 2 or h.shape[1] != u.shape[2] or not h.shape[0]:
    raise ValueError(f'h has shape {h.shape}; expected [taps, channels] with {u.shape[2]} channels, as u, and at least one tap')
  if segment_ids is not None and segment_ids.shape != u.shape[:2]:
    raise ValueError(f'segment_ids has shape {segment_ids.shape}; expected [batch, time] = {u.shape[:2]}')
