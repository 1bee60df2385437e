"""Causal convolution with one long filter per channel: the operator of Hyena, H3 and long-convolution models."""

import functools

import jax
import jax.numpy as jnp

from ssmlab.ops import segments
from ssmlab.ops.causal_convolution import direct, documents, fourier, overlap_add
from ssmlab.ops.causal_convolution.sharded import on_mesh

IMPLEMENTATIONS = ('auto', 'direct', 'fft', 'overlap_add')
_FORMS = {'direct': direct, 'fft': fourier, 'overlap_add': overlap_add}


def causal_convolution(u: jax.Array, h: jax.Array, *, segment_ids: jax.Array | None = None, implementation: str = 'auto') -> jax.Array:
  """y[b, t] = sum over j <= t of the same document of h[t - j] u[b, j], per channel.

  u: [batch, time, channels, *shared].
  h: [taps, channels], float32; every entry of the shared axes is convolved with its channel's filter.  Taps beyond `time` are out of reach,
    lags beyond `taps` count zero.
  segment_ids: int32 [batch, time] or None, see `ops.segments`.  Padding (id 0) is not read and its y is 0.
  implementation: 'direct' is the definition, lag by lag; 'fft' transforms the whole row; 'overlap_add' transforms blocks of it, for filters much
    shorter than the row; 'auto' chooses.

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
  if segment_ids is None:
    y = _convolve(_chosen(implementation, time, filters.shape[-1]), rows, filters)
  else:
    is_real = segments.real(segment_ids)[:, None, None]
    y = jnp.where(is_real, _convolve_documents(jnp.where(is_real, rows, 0), filters, segments.documents(segment_ids)), 0)
  return jnp.moveaxis(y, -1, 1).reshape(u.shape).astype(u.dtype)


def _chosen(implementation: str, time: int, taps: int) -> str:
  if implementation != 'auto':
    return implementation
  return 'direct' if taps <= 32 else 'fft'                   # short inputs are exactly causal, without an FFT's rounding of later tokens


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(form: str, u: jax.Array, h: jax.Array) -> jax.Array:
  return _FORMS[form].forward(u, h)


def _convolve_rule(form, u, h):
  return _convolve(form, u, h), (u, h)


def _convolve_gradient(form, saved, dy):
  u, h = saved
  du, dh = _FORMS[form].backward(u, h, dy)
  return _total(du, u), _total(dh, h)


_convolve.defvjp(_convolve_rule, _convolve_gradient)


@jax.custom_vjp
def _convolve_documents(u: jax.Array, h: jax.Array, document: jax.Array) -> jax.Array:
  return documents.convolve(u, h, document)


def _documents_gradient(saved, dy):
  u, h, document = saved
  du, dh = jax.vjp(lambda u, h: documents.convolve(u, h, document), u, h)[1](dy)
  return _total(du, u), _total(dh, h), None


_convolve_documents.defvjp(lambda *arguments: (_convolve_documents(*arguments), arguments), _documents_gradient)


def _total(gradient: jax.Array, of: jax.Array) -> jax.Array:
  """Inside shard_map: the sum over the mesh axes along which `of` is the same everywhere."""
  axes = jax.typeof(gradient).manual_axis_type.varying - jax.typeof(of).manual_axis_type.varying
  return jax.lax.psum(gradient, tuple(sorted(axes))) if axes else gradient


def _check_shapes(u, h, segment_ids) -> None:
  if u.ndim < 3:
    raise ValueError(f'u has shape {u.shape}; expected [batch, time, channels, *shared]')
  if h.ndim != 2 or h.shape[1] != u.shape[2] or not h.shape[0]:
    raise ValueError(f'h has shape {h.shape}; expected [taps, channels] with {u.shape[2]} channels, as u, and at least one tap')
  if segment_ids is not None and segment_ids.shape != u.shape[:2]:
    raise ValueError(f'segment_ids has shape {segment_ids.shape}; expected [batch, time] = {u.shape[:2]}')
