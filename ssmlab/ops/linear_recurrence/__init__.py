"""The matrix-state linear recurrence: one operator for RetNet, Mamba-2, mLSTM, GLA, HGRN2, RWKV-5/6/7, DeltaNet, Gated DeltaNet and KDA."""

import functools

import jax
import jax.numpy as jnp

from ssmlab.core import mesh as meshes
from ssmlab.ops import segments, sequence
from ssmlab.ops.linear_recurrence.associative import associative
from ssmlab.ops.linear_recurrence.chunked import chunked
from ssmlab.ops.linear_recurrence.reference import sequential

IMPLEMENTATIONS = ('auto', 'sequential', 'associative', 'chunked')


def linear_recurrence(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None = None,
    a: jax.Array | None = None,
    b: jax.Array | None = None,
    bonus: jax.Array | None = None,
    initial: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    implementation: str = 'auto',
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """o_t = S_t^T q_t  with  S_t = diag(exp g_t) S_{t-1} + b_t (x) (a_t^T S_{t-1}) + k_t (x) v_t; returns (o, final state).

  With `bonus` u the token is read before it is written, as in RWKV-5 and 6:  o_t = (S_{t-1} + diag(u) k_t (x) v_t)^T q_t.

  v: [batch, time, heads, value].
  q, k: [batch, time, heads, key], or with fewer heads of which v's are a multiple: head h then uses h // (v's / theirs), as Mamba-2's groups.
  log_decay: g, natural logarithm, finite and <= 0.  One number per head ([batch, time, heads], or what broadcasts to it with three axes, or [heads]
    for a constant), or one per key channel ([batch, time, heads, key], or what broadcasts to it with four axes, or [heads, key]); None
    is no decay.  A positive value cannot be seen when traced and is not checked: sums of it overflow.
  a, b: [batch, time, heads, key], both or neither; a reads the state before the decay.
  bonus: u, [heads, key].
  initial: S_0, [batch, heads, key, value]; zeros when None.  It belongs to the document of the call's first real token.
  segment_ids: int32 [batch, time], see `ops.segments`.  Padding (id 0) leaves the state untouched and its o is 0; the first token of
    every document but the call's first finds an empty state.
  implementation: 'sequential' is the definition, a `lax.scan` over tokens; 'associative' a `lax.associative_scan` that holds a state per
    token (with a and b a transition matrix per token), for tests and short inputs; 'chunked' is matrix products over chunks of tokens,
    safe for any decay, whose gradient stores inputs and chunk boundary states only; 'auto' is sequential up to 16 tokens and chunked
    beyond, but on a CPU sequential where nothing is differentiated.  'chunked' has a reverse-mode gradient only.
  chunk: tokens per chunk of the chunked form, rounded up to a power of two; None chooses.

  Returns o [batch, time, heads, value] in v's dtype and the final state [batch, heads, key, value] in float32.  Arithmetic is float32
  (float64, state included, where any input is float64).

  Settings: GLA, HGRN2, Mamba-2 (q=C, k=dt*B, v=x, g=dt*A), RetNet: a = b = None.  DeltaNet: a=-k, b=beta*k, write key beta*k.  Gated
  DeltaNet and KDA: a=-exp(g)*k, b=beta*k, write key beta*k.  RWKV-7: a=-kappa, b=kappa*iclr.  RWKV-5/6: bonus.

  Raises ValueError on an unknown implementation, on a without b, and on shapes that do not fit.
  Source: Dao & Gu, arXiv 2405.21060 (scalar decay in chunks); Yang et al., arXiv 2312.06635 (vector decay) and 2406.06484 (rank-one term).
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'implementation={implementation!r} is not one of {", ".join(IMPLEMENTATIONS)}')
  _check_rank(q, v)
  batch, time, heads, key = v.shape[:3] + q.shape[3:]
  log_decay = _expand_decay((batch, time, heads, key), log_decay)
  _check_shapes(q, k, v, a, b, bonus, initial, segment_ids, chunk)
  given = [x for x in (q, k, v, log_decay, a, b, bonus, initial) if x is not None]
  dtype = jnp.result_type(jnp.float32, *given)
  out_dtype = v.dtype
  if initial is None:
    initial = jnp.zeros((batch, heads, key, v.shape[-1]), dtype)
  if time == 0:
    return v, initial.astype(dtype)
  tokens = dict(q=q, k=k, v=v, a=a, b=b, log_decay=log_decay, starts=None)
  if segment_ids is not None:
    tokens = _silence_padding(tokens, segments.real(segment_ids)) | dict(starts=segments.starts(segment_ids))
  bonus = None if bonus is None else bonus.astype(dtype)
  initial = initial.astype(dtype)
  run = functools.partial(_run, implementation, chunk)
  o, state = _over_parts(run, tokens, bonus, initial) if sequence.parts(time) > 1 else run(tokens, bonus, initial)
  return o.astype(out_dtype), state


def _run(implementation: str, chunk: int | None, tokens: dict, bonus: jax.Array | None, initial: jax.Array) -> tuple[jax.Array, jax.Array]:
  form = _chosen(tokens['q'].shape[1], tokens) if implementation == 'auto' else implementation
  if form != 'chunked' or tokens['a'] is not None or bonus is not None or _by_channel(tokens['log_decay']):
    tokens = _every_head(tokens)
  if form == 'chunked':
    return chunked(tokens, bonus, initial, chunk)
  if form == 'loop forward':
    return _loop_forward(tokens, bonus, initial)
  return (sequential if form == 'sequential' else associative)(_wide(tokens, initial.dtype), bonus, initial)


def _over_parts(run, tokens: dict, bonus: jax.Array | None, initial: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`run` where the mesh splits time: o and state of a part from an empty state, and what the entering state adds, which is linear in it.

  With the rank-one term, what a part makes of an entering state is a matrix, and what a token reads of it a row: the state and the o of
  key more columns of values, which are zero and whose states begin as the identity.
  """
  def part(tokens, shared):
    bonus, initial = shared
    values, nothing = initial.shape[-1], jnp.zeros_like(initial)
    if tokens['a'] is None:
      reads, over = _decayed(tokens, bonus is not None, initial.dtype)
      o, last = run(tokens, bonus, nothing)
    else:
      key = initial.shape[-2]
      identity = jnp.broadcast_to(jnp.eye(key, dtype=initial.dtype), (*initial.shape[:2], key, key))
      wider = tokens | dict(v=jnp.pad(tokens['v'], ((0, 0), (0, 0), (0, 0), (0, key))))
      o, last = run(wider, bonus, jnp.concatenate([nothing, identity], axis=-1))
      (o, reads), (last, over) = jnp.split(o, [values], axis=-1), jnp.split(last, [values], axis=-1)
    move = (lambda x, y: x * y) if tokens['a'] is None else functools.partial(jnp.matmul, precision='highest')
    compose = lambda earlier, later: (move(later[0], earlier[0]), move(later[0], earlier[1]) + later[1])
    _, start = sequence.entering(compose, (over, last), (jnp.zeros_like(over), initial))
    return o + jnp.einsum('bthk,bhkv->bthv', reads, start, precision='highest'), move(over, start) + last
  return sequence.on_parts(part, tokens, (bonus, initial))


def _decayed(tokens: dict, before: bool, dtype) -> tuple[jax.Array, jax.Array]:
  """Without the rank-one term: q decayed from the beginning of the time on, [batch, time, heads, key], and the decay over all of it,
  [batch, heads, key or 1, 1]; both 0 from where another document begins."""
  q, log_decay = _every_head(tokens)['q'].astype(dtype), tokens['log_decay']
  log_decay = jnp.zeros((1, 1, 1, 1), dtype) if log_decay is None else log_decay.astype(dtype)
  total = jnp.broadcast_to(jnp.cumsum(log_decay, axis=1), (*q.shape[:3], log_decay.shape[-1]))
  reads, over = q * jnp.exp(total - log_decay if before else total), jnp.exp(total[:, -1])[..., None]
  if tokens['starts'] is None:
    return reads, over
  same = jnp.cumsum(tokens['starts'], axis=1) == 0
  return jnp.where(same[..., None, None], reads, 0), jnp.where(same[:, -1, None, None, None], over, 0)


def _every_head(tokens: dict) -> dict:
  """With q and k of v's heads."""
  return tokens | {name: jnp.repeat(tokens[name], tokens['v'].shape[2] // tokens[name].shape[2], axis=2) for name in 'qk'}


def _wide(tokens: dict, dtype) -> dict:
  return {name: x if x is None or name == 'starts' else x.astype(dtype) for name, x in tokens.items()}


def _chosen(time: int, tokens: dict) -> str:
  """What 'auto' takes."""
  if time <= _SEQUENTIAL:
    return 'sequential'
  shared = tokens['q'].shape[2] < tokens['v'].shape[2] and tokens['a'] is None and not _by_channel(tokens['log_decay'])
  return 'loop forward' if meshes.platform() == 'cpu' and not shared else 'chunked'


def _by_channel(log_decay: jax.Array | None) -> bool:
  return log_decay is not None and log_decay.shape[-1] > 1


@jax.custom_vjp
def _loop_forward(tokens: dict, bonus: jax.Array | None, initial: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The loop where nothing is differentiated, chunks forward and backward where something is: a CPU's best of both (see _SEQUENTIAL)."""
  return sequential(_wide(tokens, initial.dtype), bonus, initial)


def _loop_forward_rule(tokens, bonus, initial):
  return jax.vjp(lambda *arguments: chunked(*arguments, None), tokens, bonus, initial)


_loop_forward.defvjp(_loop_forward_rule, lambda pull, cotangents: pull(cotangents))


# Forward alone the loop is level with chunks up to 16 tokens (batch 4, 4 heads of 64: 0.19 against 0.21 ms at 16; 0.28 against 0.57 with a and
# b) and behind in the gradient (2.5 against 0.5 ms); short calls are decoding.  At 4 x 2048 tokens, forward alone, the loop takes 19 against 33 ms
# with scalar decay, 30 against 48 with vector decay, 47 against 66 with a and b; where 8 heads share keys of 128, 20 against 12 at 4 x 512.
# 2 cores CPU, November 2026.
_SEQUENTIAL = 16


def _expand_decay(shape: tuple[int, ...], log_decay: jax.Array | None) -> jax.Array | None:
  """log_decay as [batch, time, heads, key], or [batch, time, heads, 1] where it is one number per head."""
  if log_decay is None:
    return None
  forms = {1: shape[2:3], 2: shape[2:], 3: shape[:3], 4: shape}
  target = forms.get(log_decay.ndim)
  if target is None or any(n not in (1, m) for n, m in zip(log_decay.shape, target)):
    raise ValueError(f'log_decay has shape {log_decay.shape}; expected one that broadcasts to [batch, time, heads, key] = {shape}, to '
                     f'[batch, time, heads] = {shape[:3]}, or constant [heads] or [heads, key]')
  per_head = log_decay.ndim in (1, 3)
  log_decay = log_decay[..., None] if per_head else log_decay
  return jnp.broadcast_to(log_decay, shape[:3] + (1 if per_head else shape[3],))


def _check_rank(q, v) -> None:
  if q.ndim != 4:
    raise ValueError(f'q has shape {q.shape}; expected [batch, time, heads, key]')
  if v.ndim != 4 or v.shape[:2] != q.shape[:2] or v.shape[2] % q.shape[2]:
    raise ValueError(f'v has shape {v.shape}; expected [batch, time, heads, value] = {q.shape[:3]} (heads or a multiple) and any value size')


def _check_shapes(q, k, v, a, b, bonus, initial, segment_ids, chunk) -> None:
  batch, time, heads, key = v.shape[:3] + q.shape[3:]
  if (a is None) != (b is None):
    raise ValueError(f'{"a" if a is None else "b"} is None; a and b are given both or neither')
  per_token = '[batch, time, heads, key]', (batch, time, heads, key)
  expected = {'k': (k, '[batch, time, heads, key], as q', q.shape), 'a': (a, *per_token), 'b': (b, *per_token), 'bonus': (bonus, '[heads, key]', (heads, key)),
              'initial': (initial, '[batch, heads, key, value]', (batch, heads, key, v.shape[-1])),
              'segment_ids': (segment_ids, '[batch, time]', (batch, time))}
  for name, (x, axes, shape) in expected.items():
    if x is not None and x.shape != shape:
      raise ValueError(f'{name} has shape {x.shape}; expected {axes} = {shape}')
  if chunk is not None and chunk < 1:
    raise ValueError(f'chunk={chunk}; expected a positive number of tokens')


def _silence_padding(tokens: dict, is_real: jax.Array) -> dict:
  """Padding neither writes (k, v, a, b are 0), nor decays (log decay 0), nor reads (q is 0)."""
  mask = is_real[:, :, None, None]
  return {name: x if x is None else jnp.where(mask, x, jnp.zeros((), x.dtype)) for name, x in tokens.items()}
