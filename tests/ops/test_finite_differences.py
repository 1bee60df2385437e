"""Every operator's gradient, by every input, against central differences in float64, over packed and padded rows from a carried state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ssmlab.ops import (
  attention,
  diagonal_recurrence,
  discretisation,
  linear_recurrence,
  segments,
)
from ssmlab.ops.delta_rule import delta_rule, unit_length
from ssmlab.ops.inner_descent import inner_descent, loss_gradient
from ssmlab.ops.max_stabilised import weighted_average
from ssmlab.ops.rotary import frequencies, rotate, turn
from ssmlab.ops.selective_scan import selective_scan
from ssmlab.ops.short_convolution import short_convolution, token_shift
from ssmlab.ops.slstm_recurrence import State, slstm_recurrence
from ssmlab.ops.stabilised_gates import stabilised_gates

BATCH, TIME, HEADS, KEY, VALUE = 2, 21, 2, 3, 2
# Documents that begin inside, one of a single token; padding on the left, between documents, inside of one, and on the right.
IDS = np.array([[1] * 8 + [2] + [3] * 12, [0, 0] + [4] * 7 + [0] * 2 + [4] * 5 + [6] * 3 + [0] * 2], np.int32)


class Draw:
  """Normal numbers in float64, one stream for each case."""

  def __init__(self, name: str):
    self._random = np.random.default_rng(list(name.encode()))

  def __call__(self, *shape):
    return jnp.asarray(self._random.normal(size=shape))

  def decay(self, *shape):
    """Logarithms, from -2 up to 0, most of them near 0."""
    return -0.1 - 1.9 * jax.nn.sigmoid(2 * self(*shape) - 1)


def matrix_state(implementation, kind, draw):
  """kind: which of the recurrence's terms are there."""
  per_token = BATCH, TIME, HEADS
  given = dict(q=draw(*per_token, KEY), k=draw(*per_token, KEY), v=draw(*per_token, VALUE), initial=draw(BATCH, HEADS, KEY, VALUE))
  given |= {'none': {}, 'head': dict(log_decay=draw.decay(*per_token)), 'constant': dict(log_decay=draw.decay(HEADS)),
            'channel': dict(log_decay=draw.decay(*per_token, KEY)),
            'bonus': dict(log_decay=draw.decay(*per_token, KEY), bonus=draw(HEADS, KEY)),
            'shared': dict(log_decay=draw.decay(*per_token), q=draw(BATCH, TIME, 1, KEY), k=draw(BATCH, TIME, 1, KEY)),
            'rank one': dict(log_decay=draw.decay(*per_token, KEY), a=0.5 * draw(*per_token, KEY), b=0.5 * draw(*per_token, KEY)),
            'rank one, head': dict(log_decay=draw.decay(*per_token), a=0.5 * draw(*per_token, KEY), b=0.5 * draw(*per_token, KEY))}[kind]
  chunk = 8 if implementation == 'chunked' else None
  return lambda given: linear_recurrence(**given, segment_ids=jnp.asarray(IDS), implementation=implementation, chunk=chunk), (given,)


def elementwise(implementation, is_complex, draw, reverse=False):
  ids = IDS if implementation != 'blocked' else np.repeat(IDS, 13, axis=1)               # 273 tokens: more than a block
  time = ids.shape[1]
  pair = lambda *shape: (draw(*shape), draw(*shape)) if is_complex else draw(*shape)
  a = jax.tree.map(lambda x: 0.9 * jnp.tanh(x) / 1.5, pair(BATCH, time, 3))
  return (lambda a, b, h: diagonal_recurrence(a, b, h, jnp.asarray(ids), reverse=reverse, implementation=implementation),
          (a, pair(BATCH, time, 3), pair(BATCH, 3)))


def selective(implementation, draw):
  return (lambda u, dt, a, b, c, h: selective_scan(u, jnp.exp(dt - 1), -jnp.exp(a), b, c, h, jnp.asarray(IDS), implementation),
          (draw(BATCH, TIME, 3), draw(BATCH, TIME, 3), draw(3, 2), draw(BATCH, TIME, 2), draw(BATCH, TIME, 2), draw(BATCH, 3, 2)))


def averaged(implementation, draw):
  """The final state by the sums that it stands for: how exponent and sums share them is a matter of form."""
  def f(k, v, w, u, state):
    wkv, (one, other, exponent) = weighted_average(k, v, -jnp.exp(w), u, state, jnp.asarray(IDS), implementation)
    return wkv, one * jnp.exp(exponent), other * jnp.exp(exponent)
  state = draw(BATCH, 3), jnp.exp(draw(BATCH, 3)), draw(BATCH, 3)
  return f, (2 * draw(BATCH, TIME, 3), draw(BATCH, TIME, 3), draw(3), draw(3), state)


def gates(implementation, draw):
  """A quotient of two sums, as mLSTM reads it, in which the stabiliser cancels; and the stabiliser itself."""
  def f(log_forget, log_input, k, initial):
    log_decay, log_write, m, last = stabilised_gates(-jnp.exp(log_forget), log_input, initial, jnp.asarray(IDS), implementation)
    sums, _ = linear_recurrence(jnp.ones_like(k), k * jnp.exp(log_write)[..., None], jnp.stack([jnp.sin(3 * k[..., 0]), 2 + k[..., 0]], axis=-1), log_decay,
                                segment_ids=jnp.asarray(IDS), implementation='sequential')
    is_real = segments.real(jnp.asarray(IDS))[..., None]
    return jnp.where(is_real, sums[..., 0] / jnp.where(is_real, sums[..., 1], 1), 0), m, last
  return f, (draw(BATCH, TIME, HEADS), 2 * draw(BATCH, TIME, HEADS), jnp.exp(draw(BATCH, TIME, HEADS, KEY)), draw(BATCH, HEADS))


def scalar_memory(exponential, draw):
  """The final cell and normaliser as the sums that they stand for."""
  def f(gates, recurrent, h, c, n):
    out, last = slstm_recurrence(gates, recurrent, State(h, c, n, m), jnp.asarray(IDS), exponential)
    return out, last.h, last.c * jnp.exp(last.m), last.n * jnp.exp(last.m)
  m, shape = draw(BATCH, HEADS, KEY), (BATCH, HEADS, KEY)
  return f, (draw(BATCH, TIME, 4, HEADS, KEY), 0.5 * draw(HEADS, KEY, 4, KEY), draw(*shape), draw(*shape), 1 + jnp.exp(draw(*shape)))


def descent(packed, draw):
  """Mini-batches of four tokens, the first one begun by an earlier call."""
  ids = jnp.asarray(IDS) if packed else None
  positions, _ = segments.positions(ids, TIME, jnp.asarray([2, 7], jnp.int32))
  per_head = lambda *shape: draw(BATCH, HEADS, *shape)

  def f(tokens, place_rate, weight, bias, scale, shift, initial):
    return inner_descent(*tokens, place_rate, positions, weight, bias, scale, shift, 1e-2, initial, ids)
  tokens = tuple(draw(BATCH, TIME, HEADS, size) for size in (KEY, KEY, 3)) + (0.1 * jnp.exp(draw(BATCH, TIME, HEADS)),)
  initial = dict(weight=per_head(KEY, 3), weight_sum=0.1 * per_head(KEY, 3), bias=per_head(3), bias_sum=0.1 * per_head(3))
  return f, (tokens, 0.3 * jnp.exp(0.3 * draw(4)), draw(HEADS, KEY, 3), draw(HEADS, 3), draw(HEADS, 3), draw(HEADS, 3), initial)


def softmax(draw, **options):
  return (lambda q, k, v: attention.attend(q, k, v, segment_ids=jnp.asarray(IDS), **options),
          (draw(BATCH, TIME, 4, KEY), draw(BATCH, TIME, 2, KEY), draw(BATCH, TIME, 2, KEY)))


def softmax_cached(draw, window):
  """Six tokens in the cache, then a call of packed rows."""
  per_token = lambda time: (draw(BATCH, time, 4, KEY), draw(BATCH, time, 2, KEY), draw(BATCH, time, 2, KEY))
  ids, six = jnp.asarray(IDS), jnp.full((BATCH,), 6, jnp.int32)

  def f(first, second):
    cache = attention.init_cache(BATCH, window or TIME + 6, 2, KEY, jnp.float64)
    y, cache = attention.attend_cached(*first, cache, segments.positions(None, 6, 0 * six)[0], window=window)
    z, _ = attention.attend_cached(*second, cache, segments.positions(ids, TIME, six)[0], window=window, segment_ids=ids)
    return y, jnp.where(segments.real(ids)[..., None, None], z, 0)
  return f, (per_token(6), per_token(TIME))


def delta(decay, draw):
  g = {'none': None, 'head': draw.decay(BATCH, TIME, HEADS), 'channel': draw.decay(BATCH, TIME, HEADS, KEY)}[decay]
  return (lambda q, k, v, beta, g, h: delta_rule(q, k, v, 2 * jax.nn.sigmoid(beta), g, h, jnp.asarray(IDS)),
          (draw(BATCH, TIME, 1, KEY), draw(BATCH, TIME, 1, KEY), draw(BATCH, TIME, HEADS, VALUE), draw(BATCH, TIME, HEADS), g, draw(BATCH, HEADS, KEY, VALUE)))


def system(method, draw):
  return lambda real, imaginary, dt: method(-jnp.exp(real), 3 * imaginary, jnp.exp(dt)), (draw(5), draw(5), draw(5))


KINDS = {'sequential': ('head', 'bonus', 'rank one'), 'associative': ('head', 'bonus', 'rank one'), 'auto': ('channel', 'rank one'),
         'chunked': ('none', 'head', 'constant', 'channel', 'bonus', 'shared', 'rank one', 'rank one, head')}
CASES = {f'linear_recurrence, {form}, {kind}': lambda draw, form=form, kind=kind: matrix_state(form, kind, draw)
         for form, kinds in KINDS.items() for kind in kinds}
CASES |= {f'diagonal_recurrence, {form}, {number}': lambda draw, form=form, number=number: elementwise(form, number == 'complex', draw)
          for form in ('sequential', 'associative') for number in ('real', 'complex')}
CASES |= {f'diagonal_recurrence, {form}, reverse': lambda draw, form=form: elementwise(form, True, draw, reverse=True)
          for form in ('sequential', 'associative')}
CASES |= {f'selective_scan, {form}': lambda draw, form=form: selective(form, draw) for form in ('materialised', 'recomputed')}
CASES |= {f'weighted_average, {form}': lambda draw, form=form: averaged(form, draw) for form in ('sequential', 'associative')}
CASES |= {f'stabilised_gates, {form}': lambda draw, form=form: gates(form, draw) for form in ('sequential', 'associative')}
CASES |= {f'slstm_recurrence, {name}': lambda draw, name=name: scalar_memory(name == 'exponential', draw) for name in ('sigmoid', 'exponential')}
CASES |= {f'inner_descent, {name}': lambda draw, name=name: descent(name == 'packed', draw) for name in ('packed', 'one document')}
CASES |= {f'delta_rule, {decay}': lambda draw, decay=decay: delta(decay, draw) for decay in ('none', 'head', 'channel')}
CASES |= {
    'diagonal_recurrence, blocked': lambda draw: elementwise('blocked', False, draw),
    'loss_gradient': lambda draw: (lambda *x: loss_gradient(*x, 1e-2), (draw(2, 4), draw(2, 4), draw(4), draw(4))),
    'unit_length': lambda draw: (unit_length, (draw(3, 4),)),
    'attend': softmax,
    'attend, window': lambda draw: softmax(draw, window=4),
    'attend, both ways': lambda draw: softmax(draw, causal=False),
    'attend_cached': lambda draw: softmax_cached(draw, None),
    'attend_cached, window': lambda draw: softmax_cached(draw, 5),
    'short_convolution': lambda draw: (lambda *x: short_convolution(*x, jnp.asarray(IDS)),
                                       (draw(BATCH, TIME, 3), draw(4, 3), draw(3), draw(BATCH, 3, 3))),
    'token_shift': lambda draw: (lambda *x: token_shift(*x, jnp.asarray(IDS)), (draw(BATCH, TIME, 3), draw(BATCH, 3))),
    'rotate': lambda draw: (lambda x: rotate(x, segments.positions(jnp.asarray(IDS), TIME, jnp.zeros((BATCH,), jnp.int32))[0], frequencies(4)),
                            (draw(BATCH, TIME, HEADS, 5),)),
    'turn': lambda draw: (lambda x, angle: turn(x, angle, interleaved=True), (draw(BATCH, TIME, HEADS, 5), draw(BATCH, TIME, HEADS, 2))),
    'zero_order_hold': lambda draw: system(discretisation.zero_order_hold, draw),
    'bilinear': lambda draw: system(discretisation.bilinear, draw)}


@pytest.mark.parametrize('name', CASES)
def test_gradient_is_that_of_differences(name):
  with jax.enable_x64(True):
    f, given = CASES[name](Draw(name))
    check_grads(jax.jit(f), given, order=1, modes=['rev'], eps=1e-5, atol=1e-6, rtol=1e-6)


def test_a_wrong_gradient_is_seen():
  """One part in ten thousand of one of the inputs' gradient."""
  with jax.enable_x64(True):
    f, (given,) = CASES['linear_recurrence, sequential, head'](Draw('wrong'))
    skewed = lambda given: f(given | dict(k=given['k'] + 1e-4 * (given['k'] - jax.lax.stop_gradient(given['k']))))
    with pytest.raises(AssertionError):
      check_grads(jax.jit(skewed), (given,), order=1, modes=['rev'], eps=1e-5, atol=1e-6, rtol=1e-6)
