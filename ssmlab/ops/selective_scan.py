"""Mamba's selective scan: one state of a few numbers for every channel, whose decay, input and read depend on the token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.core import mesh as meshes
from ssmlab.ops import segments, sequence
from ssmlab.ops.diagonal_recurrence import diagonal_recurrence

IMPLEMENTATIONS = ('auto', 'materialised', 'recomputed')
# Tokens between two stored states: at Mamba's 16 numbers a channel the stored states are then as large as one of the inputs.
_BLOCK = 16


def selective_scan(
    u: jax.Array,
    dt: jax.Array,
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    initial: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    implementation: str = 'auto',
) -> tuple[jax.Array, jax.Array]:
  """y[t, n] = sum_s c[t, s] h[t, n, s],  h[t, n, s] = exp(dt[t, n] a[n, s]) h[t-1, n, s] + dt[t, n] u[t, n] b[t, s]; returns (y, last h).

  u, dt: [batch, time, inner], dt >= 0.  a: [inner, state], <= 0.  b, c: [batch, time, state].
  initial: h[-1], [batch, inner, state]; zeros when None.
  segment_ids: int32 [batch, time], see `ops.segments`.  Padding (id 0) leaves h untouched (its y reads that); the first token of every
    document but the call's first finds h = 0.
  implementation: 'materialised' is the definition by `diagonal_recurrence`, with arrays of all tokens' states; 'recomputed' walks the tokens,
    stores the state that enters every 16th and recomputes the others for the gradient (reverse mode only); 'auto' chooses by length and
    platform.

  Returns y [batch, time, inner] and the last state, both in float32 (float64 where an input is), as is the arithmetic.
  Raises ValueError on an unknown implementation or on shapes that do not fit.
  Source: Mamba, arXiv 2312.00752, section 3.3.2 and appendix D; state-spaces/mamba, mamba_ssm/ops/selective_scan_interface.py.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'implementation={implementation!r} is not one of {", ".join(IMPLEMENTATIONS)}')
  _check_shapes(u, dt, a, b, c, initial, segment_ids)
  given = (u, dt, a, b, c) if initial is None else (u, dt, a, b, c, initial)
  dtype = jnp.result_type(jnp.float32, *given)
  u, dt, a, b, c = (x.astype(dtype) for x in given[:5])
  initial = jnp.zeros((u.shape[0], *a.shape), dtype) if initial is None else initial.astype(dtype)
  if _choose(implementation, u.shape[1]) == 'materialised':
    h, last = diagonal_recurrence(jnp.exp(dt[..., None] * a), (dt * u)[..., None] * b[:, :, None], initial, segment_ids)
    return jnp.einsum('btns,bts->btn', h, c, precision='highest'), last
  masks = None if segment_ids is None else (segments.real(segment_ids)[..., None], segments.starts(segment_ids)[..., None])
  return (_over_parts if sequence.parts(u.shape[1]) > 1 else _by_blocks)((u, dt, b, c, masks), a, initial)


def _choose(implementation: str, length: int) -> str:
  """Gradient at [4, 512, 512], state 16, float32: recomputed 68 ms, materialised 525; forward 14 and 233 (2 cores CPU, busy, November
  2026).  On accelerators, not measured, loops of tiny steps lose."""
  if implementation != 'auto':
    return implementation if length else 'materialised'
  return 'recomputed' if length > 1 and meshes.platform() == 'cpu' else 'materialised'


def _check_shapes(u, dt, a, b, c, initial, segment_ids) -> None:
  if u.ndim != 3:
    raise ValueError(f'u has shape {u.shape}; expected [batch, time, inner]')
  if a.ndim != 2:
    raise ValueError(f'a has shape {a.shape}; expected [inner, state]')
  batch, time, inner = u.shape
  state = a.shape[1]
  expected = (('dt', dt, '[batch, time, inner]', u.shape), ('a', a, '[inner, state]', (inner, state)),
              ('b', b, '[batch, time, state]', (batch, time, state)), ('c', c, '[batch, time, state]', (batch, time, state)),
              ('initial', initial, '[batch, inner, state]', (batch, inner, state)), ('segment_ids', segment_ids, '[batch, time]', (batch, time)))
  for name, x, axes, shape in expected:
    if x is not None and x.shape != shape:
      raise ValueError(f'{name} has shape {x.shape}; expected {axes} = {shape}')


def _over_parts(tokens, a, initial):
  """`_by_blocks` where the mesh splits time."""
  compose = lambda earlier, later: (later[0] * earlier[0], later[0] * earlier[1] + later[1])

  def part(tokens, shared):
    a, initial = shared
    dt, masks = tokens[1], tokens[4]
    _, last = _by_blocks(tokens, a, jnp.zeros_like(initial))
    over = jnp.exp(jnp.sum(dt if masks is None else jnp.where(masks[0], dt, 0), axis=1)[..., None] * a)
    if masks is not None:
      over = jnp.where(jnp.any(masks[1], axis=1)[..., None], 0, over)
    _, start = sequence.entering(compose, (over, last), (jnp.zeros_like(initial), initial))
    return _by_blocks(tokens, a, start)
  return sequence.on_parts(part, tokens, (a, initial))


def _by_blocks(tokens, a, initial):
  """Inside, the state is [batch, state, inner], so that the long axis is the contiguous one, and time comes first, in blocks."""
  y, last = _walk(*tokens, a.T, jnp.swapaxes(initial, 1, 2))
  return jnp.moveaxis(y.reshape(-1, *y.shape[2:])[:tokens[0].shape[1]], 0, 1), jnp.swapaxes(last, 1, 2)


def _into_blocks(u, dt, b, c, masks):
  """(write, dt, b, c, cut), each [blocks, block, batch, inner or state or 1]."""
  cut, write = None, dt * u
  if masks is not None:
    is_real, cut = masks
    dt, write = jnp.where(is_real, dt, 0), jnp.where(is_real, write, 0)
  block = min(_BLOCK, u.shape[1])
  padding = -u.shape[1] % block                         # after the end: dt = 0 and write = 0 leave the state as it is

  def into_blocks(x):
    x = jnp.pad(jnp.moveaxis(x, 1, 0), ((0, padding), (0, 0), (0, 0)))
    return x.reshape(-1, block, *x.shape[1:])
  return jax.tree.map(into_blocks, (write, dt, b, c, cut))


def _decay(a, dt, cut):
  """exp(dt a), [batch, state, inner], of one token; zero where a document begins."""
  decay = jnp.exp(dt[:, None] * a)
  return decay if cut is None else jnp.where(cut[..., None], 0, decay)


def _update(a, h, token):
  write, dt, b, _, cut = token
  return _decay(a, dt, cut) * h + write[:, None] * b[..., None]


@jax.custom_vjp
def _walk(u, dt, b, c, masks, a, initial):
  """(y [blocks, block, batch, inner], last state).  masks: (real, cut), each [batch, time, 1], or None."""
  return _walk_forward(u, dt, b, c, masks, a, initial)[0]


def _walk_forward(u, dt, b, c, masks, a, initial):
  def step(h, token):
    h = _update(a, h, token)
    return h, jnp.sum(h * token[3][..., None], axis=1)

  def one_block(h, tokens):
    after, y = jax.lax.scan(step, h, tokens)
    return after, (y, h)
  last, (y, entering) = jax.lax.scan(one_block, initial, _into_blocks(u, dt, b, c, masks))
  return (y, last), (u, dt, b, c, masks, a, entering)


def _walk_backward(residuals, cotangents):
  """From the right; g is the adjoint of the state after a token: what that token reads of it and what it hands on."""
  *tokens, masks, a, entering = residuals
  blocks, pull = jax.vjp(lambda *tokens: _into_blocks(*tokens, masks), *tokens)
  dy, d_last = cotangents

  def again(h, token):
    return _update(a, h, token), h

  def step(carry, inputs):
    (_, dt, b, c, cut), h, dy = inputs
    handed_back, da = carry
    decay = _decay(a, dt, cut)
    g = handed_back + dy[:, None] * c[..., None]
    back = decay * g
    exponent = back * h                                 # the adjoint of dt a
    return (back, da + exponent * dt[:, None]), (g, jnp.sum(g * b[..., None], axis=1), jnp.sum(exponent * a, axis=1))

  def one_block(carry, inputs):
    tokens, h, dy = inputs
    after, before = jax.lax.scan(again, h, tokens)
    carry, (g, d_write, d_dt) = jax.lax.scan(step, carry, (tokens, before, dy), reverse=True)
    over_inner = functools.partial(jnp.einsum, 'tbsn,tbn->tbs', precision='highest')      # per block: one reduction over devices, not one a token
    d_b, d_c = over_inner(g, tokens[0]), over_inner(jnp.concatenate([before[1:], after[None]]), dy)
    return carry, (d_write, d_dt, d_b, d_c)
  (d_initial, da), d_blocks = jax.lax.scan(one_block, (d_last, jnp.zeros_like(d_last)), (blocks, entering, dy), reverse=True)
  none = None if masks is None else np.zeros(blocks[4].shape, jax.dtypes.float0)
  return *pull((*d_blocks, none)), None, jnp.sum(da, axis=0), d_initial


_walk.defvjp(_walk_forward, _walk_backward)
