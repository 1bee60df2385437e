"""Long causal convolution: every form against the definition in float64, documents, streams of any split, and meshes."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ssmlab.ops.causal_convolution import causal_convolution
from ssmlab.ops.causal_convolution.fourier import fast_length
from ssmlab.ops.causal_convolution.streaming import FORMS, init_stream, stream
from tests.eight_devices import lines

# Documents that begin inside, one of a single token; padding on the left, between documents, and on the right.
IDS = np.array([[1] * 8 + [2] + [3] * 12, [0, 0] + [4] * 7 + [0] * 2 + [4] * 5 + [6] * 3 + [0] * 2], np.int32)


compiled = jax.jit(causal_convolution, static_argnames='implementation')


def draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def definition(u, h):
  """y[t] = sum_j h[t - j] u[j] in float64."""
  u, h = np.asarray(u, np.float64), np.asarray(h, np.float64)
  y = np.zeros_like(u)
  for lag in range(min(h.shape[0], u.shape[1])):
    y[:, lag:] += h[lag].reshape((-1,) + (1,) * (u.ndim - 3)) * u[:, :u.shape[1] - lag]
  return y


def by_document(u, h, ids):
  """The definition inside every run of equal ids; padding 0."""
  y = np.zeros_like(np.asarray(u, np.float64))
  for row, of in enumerate(ids):
    bounds = [0, *(np.flatnonzero(np.diff(of)) + 1), len(of)]
    for begin, end in zip(bounds, bounds[1:]):
      if of[begin]:
        y[row, begin:end] = definition(u[row:row + 1, begin:end], h)[0]
  return y


def close(got, want, tolerance=1e-6):
  np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0, atol=tolerance * max(np.abs(want).max(), 1e-30))


@pytest.mark.parametrize('implementation', ('auto', 'direct', 'fft', 'overlap_add'))
@pytest.mark.parametrize('time, taps', ((1, 1), (1, 5), (50, 50), (50, 80), (130, 40), (300, 7)))
def test_forms_equal_the_definition(implementation, time, taps):
  u, h = draw(time, 2, time, 3, 2).astype('f'), draw(taps, taps, 3).astype('f')
  close(compiled(u, h, implementation=implementation), definition(u, h))
  close(compiled(u[..., 0], h, implementation=implementation), definition(u[..., 0], h))


def packed_ids(time, documents, seed):
  """Sorted ids, every row's first and last few tokens padding."""
  ids = np.sort(np.random.default_rng(seed).integers(1, documents + 1, (2, time)), axis=1).astype(np.int32)
  ids[1, :time // 7] = 0
  ids[0, time - time // 9:] = 0
  return ids


@pytest.mark.parametrize('implementation', ('auto', 'direct'))
@pytest.mark.parametrize('time, taps, documents', ((1, 1, 1), (21, 21, 3), (21, 3, 3), (130, 130, 1), (301, 301, 4), (600, 250, 40)))
def test_packed_is_separate(implementation, time, taps, documents):
  u, h, ids = draw(1, 2, time, 2, 2).astype('f'), draw(2, taps, 2).astype('f'), packed_ids(time, documents, time)
  close(compiled(u, h, segment_ids=jnp.asarray(ids), implementation=implementation), by_document(u, h, ids))


def test_padding_is_neither_read_nor_written():
  u, h, ids = draw(1, 2, 21, 3).astype('f'), draw(2, 21, 3).astype('f'), IDS
  clean = causal_convolution(u, h, segment_ids=jnp.asarray(ids))
  u[ids == 0] = np.nan
  np.testing.assert_array_equal(causal_convolution(u, h, segment_ids=jnp.asarray(ids)), clean)
  assert not np.any(np.asarray(clean)[ids == 0])


@pytest.mark.parametrize('implementation', ('direct', 'fft', 'overlap_add'))
@pytest.mark.parametrize('packed', (False, True))
@pytest.mark.parametrize('taps', (9, 30))
def test_gradient_is_that_of_differences(implementation, packed, taps):
  with jax.enable_x64(True):
    f = functools.partial(causal_convolution, implementation=implementation, segment_ids=jnp.asarray(IDS) if packed else None)
    given = jnp.asarray(draw(3, 2, 21, 3, 2)), jnp.asarray(draw(4, taps, 3))
    check_grads(jax.jit(f), given, order=1, modes=['rev'], eps=1e-5, atol=1e-6, rtol=1e-6)


def test_short_inputs_are_exactly_causal():
  """No gradient from earlier outputs, not even a rounding error."""
  u, h = jnp.asarray(draw(1, 1, 24, 2), jnp.float32), jnp.asarray(draw(2, 24, 2), jnp.float32)
  for ids in (None, jnp.ones((1, 24), jnp.int32)):
    assert not np.any(jax.grad(lambda u: jnp.sum(causal_convolution(u, h, segment_ids=ids)[:, :10]))(u)[:, 10:])


def test_packed_gradient_is_that_of_the_matrix():
  """Over every level, products with matrices and FFTs: against the dense lower triangular matrix of each row."""
  time, ids = 400, packed_ids(400, 3, 0)
  u, h, weight = draw(1, 2, time, 2), draw(2, time, 2), draw(3, 2, time, 2)
  lag = np.arange(time)[:, None] - np.arange(time)
  du, dh = np.zeros_like(u), np.zeros_like(h)
  for row in range(2):
    reach = (lag >= 0) & (ids[row][:, None] == ids[row]) & (ids[row] != 0)
    for channel in range(2):
      du[row, :, channel] = (reach * h[np.maximum(lag, 0), channel]).T @ weight[row, :, channel]
      np.add.at(dh[:, channel], lag[reach], np.outer(weight[row, :, channel], u[row, :, channel])[reach])
  with jax.enable_x64(True):
    value = lambda u, h: jnp.sum(weight * causal_convolution(u, h, segment_ids=jnp.asarray(ids)))
    got = jax.jit(jax.grad(value, argnums=(0, 1)))(jnp.asarray(u), jnp.asarray(h))
  close(got[0], du, 1e-12)
  close(got[1], dh, 1e-12)


def test_second_derivative():
  with jax.enable_x64(True):
    u, h = jnp.asarray(draw(5, 1, 12, 2)), jnp.asarray(draw(6, 12, 2))
    first = jax.grad(lambda u, h: jnp.sum(jnp.tanh(causal_convolution(u, h, implementation='fft'))), argnums=1)
    check_grads(first, (u, h), order=1, modes=['rev'], eps=1e-5, atol=1e-6, rtol=1e-6)


def test_dtype_and_precision():
  u, h = draw(1, 2, 90, 3), draw(2, 90, 3).astype('f')
  low = causal_convolution(jnp.asarray(u, jnp.bfloat16), h)
  assert low.dtype == jnp.bfloat16
  close(low, definition(np.asarray(jnp.asarray(u, jnp.bfloat16), np.float64), h), 4e-3)
  with jax.enable_x64(True):
    close(causal_convolution(jnp.asarray(u), jnp.asarray(h)), definition(u, h), 1e-13)


def test_fast_length():
  smooth = sorted(2**a * 3**b * 5**c for a in range(12) for b in range(8) for c in range(6))
  assert [fast_length(n) for n in range(1, 1500)] == [next(s for s in smooth if s >= n) for n in range(1, 1500)]


@pytest.mark.parametrize('arguments, message', (
    (dict(implementation='fast'), 'fast'), (dict(u=np.zeros((2, 3), 'f')), 'u has shape'), (dict(h=np.zeros((4, 5), 'f')), 'h has shape'),
    (dict(h=np.zeros((0, 3), 'f')), 'h has shape'), (dict(segment_ids=np.ones((2, 5), 'i')), 'segment_ids has shape')))
def test_errors(arguments, message):
  given = dict(u=np.zeros((2, 4, 3), 'f'), h=np.zeros((4, 3), 'f')) | arguments
  with pytest.raises(ValueError, match=message):
    causal_convolution(given.pop('u'), given.pop('h'), **given)


# Streams.


@functools.partial(jax.jit, static_argnums=3)
def token_by_token(state, u, h, form):
  step = lambda state, x: stream(state, x[:, None], h, form=form)[::-1]
  state, y = jax.lax.scan(step, state, jnp.moveaxis(u, 1, 0))
  return jnp.moveaxis(y[:, :, 0], 0, 1), state


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('slots, taps', ((4096, 4096), (300, 300), (64, 40), (1, 1)))
def test_token_by_token_is_the_whole(form, slots, taps):
  u, h = draw(1, 2, 4096, 2).astype('f'), draw(2, taps, 2).astype('f') * np.linspace(1, 0.1, taps, dtype='f')[:, None]
  y, _ = token_by_token(init_stream(2, slots, (2,), form), u, h, form)
  close(y, definition(u, h), 2e-6)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('calls', ((60, *(1,) * 140), (1,) * 40 + (7, 1, 1, 90) + (1,) * 63, (200,), (3, 64, 1, 128, 4)))
def test_any_split_is_the_whole(form, calls):
  u, h = draw(1, 2, 201, 2, 2).astype('f'), draw(2, 150, 2).astype('f')
  run = jax.jit(functools.partial(stream, form=form))
  state, outputs, at = init_stream(2, 150, (2, 2), form), [], 0
  for size in calls:
    y, state = run(state, u[:, at:at + size], h)
    outputs.append(y)
    at += size
  close(jnp.concatenate(outputs, axis=1), definition(u[:, :at], h), 2e-6)


@pytest.mark.parametrize('form', FORMS)
def test_documents_and_padding_in_calls(form):
  """Rows of different progress: padding on either side, documents that begin inside a call, single tokens of which some rows are padding."""
  random = np.random.default_rng(7)
  u, h = draw(1, 3, 160, 2).astype('f'), draw(2, 160, 2).astype('f')
  run = jax.jit(functools.partial(stream, form=form))
  state, read, at = init_stream(3, 160, (2,), form), [[] for _ in range(3)], 0
  for size in (40, 1, 1, 1, 30, 1, 1, 1, 1, 1, 1, 40, 1, 1, 1):
    left, right = random.integers(0, size // 3 + 1, 3), random.integers(0, size // 3 + 1, 3)
    ids = np.ones((3, size), np.int32)
    if size == 1:
      ids[:, 0] = random.integers(0, 2, 3)
    else:
      ids[1, size // 2:] = 2                              # a document begins
      for row in range(3):
        ids[row, :left[row]] = 0
        ids[row, size - right[row]:] = 0
    y, state = run(state, u[:, at:at + size], h, segment_ids=jnp.asarray(ids))
    for row in range(3):
      for t in range(size):
        if not ids[row, t]:
          assert not np.any(np.asarray(y)[row, t])
          continue
        if t and ids[row, t] == 2 and ids[row, t - 1] == 1:
          read[row] = []
        read[row].append(u[row, at + t])
        past = np.array(read[row])[::-1]
        close(y[row, t], np.sum(h[:len(past)].astype(np.float64) * past, axis=0), 1e-5)
    at += size


@pytest.mark.parametrize('form', FORMS)
def test_a_row_of_zeros_is_fresh(form):
  """Row 1 begins anew after 77 tokens; row 0 goes on."""
  u, h = draw(1, 2, 210, 2).astype('f'), draw(2, 210, 2).astype('f')
  before, state = token_by_token(init_stream(2, 210, (2,), form), u[:, :77], h, form)
  state = jax.tree.map(lambda x: x.at[1].set(0), state)
  after, _ = token_by_token(state, u[:, 77:], h, form)
  close(jnp.concatenate([before, after], axis=1)[0], definition(u, h)[0], 2e-6)
  close(after[1], definition(u[1:, 77:], h)[0], 2e-6)


@pytest.mark.parametrize('form', FORMS)
def test_stream_gradient_is_the_whole_gradient(form):
  """Through 70 single tokens behind a call of 9."""
  with jax.enable_x64(True):
    u, h, weight = (jnp.asarray(draw(seed, *shape)) for seed, shape in ((1, (1, 79, 2)), (2, (79, 2)), (3, (1, 79, 2))))

    def streamed(u, h):
      state = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, init_stream(1, 79, (2,), form))
      first, state = stream(state, u[:, :9], h, form=form)
      return jnp.concatenate([first, token_by_token(state, u[:, 9:], h, form)[0]], axis=1)
    got = jax.grad(lambda u, h: jnp.sum(weight * streamed(u, h)), argnums=(0, 1))(u, h)
    want = jax.grad(lambda u, h: jnp.sum(weight * causal_convolution(u, h)), argnums=(0, 1))(u, h)
    for a, b in zip(got, want):
      close(a, np.asarray(b), 1e-12)


def test_stream_copies_no_ring():
  """A token of the tiled form inside a loop: no copy of the ring in the compiled program, and no FFT outside of a level's own loop."""
  def generate(state, u, h):
    def step(carried, _):
      state, u = carried
      y, state = stream(state, u, h)
      return (state, jnp.tanh(y)), y
    return jax.lax.scan(step, (state, u), length=100)
  text = jax.jit(generate, donate_argnums=0).lower(init_stream(1, 2048, (8,)), jnp.ones((1, 1, 8)), jnp.ones((2048, 8))).compile().as_text()
  assert ' fft(' in text and 'f32[1,2048,8]{2,1,0} copy(' not in text
  entry = text[text.index('ENTRY'):]
  assert ' fft(' not in entry


def test_stream_errors():
  with pytest.raises(ValueError, match='form=.*direct, epoched, tiled'):
    init_stream(1, 4, (2,), 'lazy')
  with pytest.raises(ValueError, match='slots=0'):
    init_stream(1, 0, (2,))
  state = init_stream(1, 4, (2,), 'tiled')
  with pytest.raises(ValueError, match='of another form'):
    stream(state, jnp.zeros((1, 1, 2)), jnp.zeros((4, 2)), form='direct')
  with pytest.raises(ValueError, match='of another form'):
    stream(init_stream(1, 256, (2,), 'epoched'), jnp.zeros((1, 1, 2)), jnp.zeros((4, 2)), form='tiled')
  with pytest.raises(ValueError, match='u has shape'):
    stream(state, jnp.zeros((1, 1, 3)), jnp.zeros((4, 3)))


def test_meshes_are_one_device():
  cases = {row['name']: row for row in map(json.loads, lines('ops/causal_convolution_sharded'))}
  assert len(cases) == 9
  for name, row in cases.items():
    assert max(row['differences']) < 1e-5, row
    if 'divide' not in name and name != 'stream':
      assert 'all-gather' not in row['collectives'], row
      assert ('all-to-all' in row['collectives']) == ('batch and channels' not in name), row
