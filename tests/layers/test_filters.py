"""Long filters against their formulas in numpy float64, their convolution against np.convolve, every way of reading, every field, the bounds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.params import hints, init, size
from ssmlab.layers.filters import (
  DiagonalSSM,
  ExplicitFilter,
  ImplicitFilter,
  ModalFilter,
)

CHANNELS, BATCH, TIME = 6, 2, 40
IMPLICIT = ImplicitFilter(l_max=48, emb_dim=7, width=10, frequency=5.0, shift=0.1)
FILTERS = {
    'implicit': IMPLICIT, 'unmodulated': dataclasses.replace(IMPLICIT, modulate=False, inner_layers=0),
    'normalised': dataclasses.replace(IMPLICIT, normalised=True), 'explicit': ExplicitFilter(l_max=48, threshold=0.01), 'modal': ModalFilter(modes=3),
    'modal by fft': ModalFilter(modes=3, direct=False, by_fft=True), 'bilinear': DiagonalSSM(state=8), 'hold': DiagonalSSM(state=8, hold=True, by_fft=False)}


def drawn(made, spread=0.1):
  """Parameters a little away from their start, as float64 numpy."""
  params = init(jax.random.key(0), made.params(CHANNELS))
  random = np.random.default_rng(1)
  return {name: np.asarray(p, np.float64) + spread * random.normal(size=p.shape) for name, p in params.items()}


def formula(made, p, length):
  """[length, CHANNELS], straight from the papers."""
  t = np.arange(length)[:, None]
  if isinstance(made, ImplicitFilter):
    x = p['z'][0, :length]
    for i in range(made.inner_layers + 1):
      x = np.sin(p['frequency'] * (x @ p[f'w_{i}'] + p[f'b_{i}']))
    h = x @ p['w_out']
    h = h * (np.exp(-t / (made.l_max - 1) * np.abs(p['delta'])) + made.shift) if made.modulate else h
    return h / np.abs(h).sum(axis=1, keepdims=True) if made.normalised else h
  if isinstance(made, ExplicitFilter):
    return np.sign(p['k'][:length]) * np.maximum(np.abs(p['k'][:length]) - made.threshold, 0)
  if isinstance(made, ModalFilter):
    pole, residue = np.exp(-np.exp(p['log_rate']) + 1j * p['angle']), p['real'] + 1j * p['imaginary']
    h = (residue * pole ** t[..., None]).sum(axis=1).real
    h[0] += p.get('direct', 0)
    return h
  a, dt = -np.exp(p['inv_a_real']) + 1j * p['a_imag'], np.exp(p['log_dt'])
  b, c = p['b'][0] + 1j * p['b'][1], p['c'][0] + 1j * p['c'][1]
  if made.hold:
    pole, b = np.exp(dt * a), b * (np.exp(dt * a) - 1) / a
  else:
    pole, b = (1 + dt * a / 2) / (1 - dt * a / 2), b * dt / (1 - dt * a / 2)
  return 2 * (c * b * pole ** t[..., None]).sum(axis=1).real


def convolved(h, u):
  return np.stack([np.stack([np.convolve(h[:, c], row[:, c])[:len(row)] for c in range(CHANNELS)], axis=1) for row in u])


@pytest.mark.parametrize('name', FILTERS)
@pytest.mark.parametrize('precision, tolerance', [('float64', 1e-11), ('float32', 2e-5)])
def test_taps_and_convolution(name, precision, tolerance):
  """Whole, in calls with a state, and with shared axes, which all have their channel's filter."""
  made, p = FILTERS[name], drawn(FILTERS[name])
  u = np.random.default_rng(2).normal(size=(BATCH, TIME, CHANNELS))
  expected = convolved(formula(made, p, TIME), u)
  close = lambda mine, theirs: np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())
  with jax.enable_x64(precision == 'float64'):
    params, x = jax.tree.map(lambda v: jnp.asarray(v, precision), (p, u))
    close(made.taps(params, TIME), formula(made, p, TIME))
    apply = jax.jit(made.apply)
    y, none = apply(params, x)
    assert none is None and y.dtype == precision
    close(y, expected)
    state, seen = jax.tree.map(lambda v: v.astype(precision) if v.dtype == jnp.float32 else v, made.init_state(CHANNELS, BATCH, TIME)), []
    for begin, end in ((0, 17), (17, 18), (18, 19), (19, TIME)):
      y, state = apply(params, x[:, begin:end], state)
      seen.append(y)
    close(jnp.concatenate(seen, axis=1), expected)
    shared = x[..., None, None] * jnp.asarray([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]])
    y, _ = apply(params, shared)
    close(y[..., 1, 1], -expected)
    y, _ = apply(params, shared, made.init_state(CHANNELS, BATCH, TIME, (3, 2)))
    close(y[..., 0, 1], 2 * expected)


@pytest.mark.parametrize('name', ('implicit', 'explicit'))
def test_how_single_tokens_are_read_changes_nothing(name):
  made, results = FILTERS[name], []
  params, u = jax.tree.map(jnp.float32, drawn(made)), jax.random.normal(jax.random.key(0), (BATCH, TIME, CHANNELS))
  layouts = set()
  for form in ('direct', 'epoched', 'tiled'):
    streamed = dataclasses.replace(made, form=form)
    state, seen, step = streamed.init_state(CHANNELS, BATCH, TIME), [], jax.jit(streamed.apply)
    layouts.add(str(jax.tree.map(jnp.shape, state)))
    for t in range(TIME):
      y, state = step(params, u[:, t:t + 1], state)
      seen.append(y)
    results.append(jnp.concatenate(seen, axis=1))
  assert len(layouts) == 3
  for result in results:
    np.testing.assert_allclose(result, made.apply(params, u)[0], atol=1e-5)


def test_features_of_positions_are_relative_to_the_longest_length():
  made = ImplicitFilter(l_max=10, emb_dim=5)
  z = np.asarray(init(jax.random.key(0), made.params(3))['z'][0])
  i, w = np.arange(10), 2 * np.pi * np.arange(10) / 10
  expected = np.stack([i / 9, np.cos(1e-4 * w), np.cos(w), -np.sin(1e-4 * w), -np.sin(w)], axis=1)
  np.testing.assert_allclose(z, expected, atol=1e-6)
  np.testing.assert_array_equal(made.taps(init(jax.random.key(0), made.params(3)), 4), made.taps(init(jax.random.key(0), made.params(3)), 10)[:4])


def test_starts():
  made = ImplicitFilter(l_max=2048)
  params = init(jax.random.key(0), made.params(864))
  assert size(made.params(864)) == 134_304 - 864 and params['z'].size == 67_584      # of safari's 153M; 864: the skip, which is the mixer's here
  assert set(np.unique(params['frequency'])) == {14.0}
  np.testing.assert_allclose(np.abs(params['delta'][jnp.array([0, -1])]), [3.07, 15.35], atol=5e-3)
  taps = np.abs(made.taps(params, 2048))
  assert 0.006 < taps.mean() < 0.025 and 0.2 < taps.max() < 0.9                      # section 4: 0.012 and 0.46
  modal = init(jax.random.key(0), ModalFilter(modes=4, slowest=500.0).params(3000))
  memory = np.exp(-np.asarray(modal['log_rate']))
  assert 0.5 <= memory.min() < 0.6 and 450 < memory.max() <= 500.001 and 0 <= modal['angle'].min() and modal['angle'].max() <= np.pi
  plain = init(jax.random.key(0), ExplicitFilter(l_max=400, decaying=False).params(50))['k']
  assert abs(plain.std() - 0.002) < 1e-4
  k = init(jax.random.key(0), ExplicitFilter(l_max=400).params(50))['k']
  np.testing.assert_allclose(k[:8].std(), 0.02, rtol=0.1)
  np.testing.assert_allclose(k[-40:, 0].std() / k[:40, 0].std(), np.exp(-0.9), rtol=0.5)
  assert k[-100:, -1].std() < 1e-6
  diagonal = init(jax.random.key(0), DiagonalSSM(state=8).params(2000))
  np.testing.assert_allclose(diagonal['inv_a_real'], np.log(0.5), rtol=1e-6)
  np.testing.assert_allclose(diagonal['a_imag'][:, 7], np.pi * np.arange(4), rtol=1e-6)
  np.testing.assert_array_equal(diagonal['b'][:, 0, 0], [1, 0])
  assert abs(np.square(diagonal['c']).mean() - 0.5) < 0.02
  assert np.log(1e-3) <= diagonal['log_dt'].min() < np.log(1.1e-3) and np.log(0.09) < diagonal['log_dt'].max() <= np.log(0.1) + 1e-6


def test_the_optimiser_is_told_what_the_authors_say():
  """The network has its own rate, delta and (at rate 0) z are constants without a gradient, nothing of it is decayed, all of it float32."""
  made = ImplicitFilter(l_max=16, emb_dim=5, width=4, rate=0.5, position_rate=0.0)
  declared = made.params(3)
  assert hints(declared, 'rate') == {name: 0.0 if name in ('z', 'delta') else 0.5 for name in declared}
  assert not any(jax.tree.leaves(hints(declared, 'weight_decay'))) and all(jax.tree.leaves(hints(declared, 'full_precision')))
  gradient = lambda made: jax.grad(lambda p: jnp.sum(made.taps(p, 16) ** 2))(init(jax.random.key(0), declared))
  assert {name for name, g in gradient(made).items() if not np.abs(g).max()} == {'z', 'delta'}
  assert not {name for name, g in gradient(dataclasses.replace(made, position_rate=1.0, window_rate=1.0)).items() if not np.abs(g).max()}
  slow = hints(DiagonalSSM(state=8, rate=0.1).params(3), 'rate')
  assert {name for name, rate in slow.items() if rate == 0.1} == {'log_dt', 'inv_a_real', 'a_imag', 'b'}


CHANGES = {int: lambda v: v + 2, float: lambda v: 0.5 * v + 0.02, bool: lambda v: not v, str: lambda v: 'direct'}


@pytest.mark.parametrize('made', [dataclasses.replace(IMPLICIT), ExplicitFilter(l_max=48), ModalFilter(), DiagonalSSM(state=8)], ids=lambda m: type(m).__name__)
def test_every_field_is_read(made):
  """Another value gives other declarations, first values, taps, states, or (by_fft) another way through."""
  def everything(made):
    declared = made.params(CHANNELS)
    params = init(jax.random.key(0), declared)
    tree = dict(params=params, taps=made.taps(params, 12), state=made.init_state(CHANNELS, 1, TIME))
    said = [(p.shape, p.rate, p.weight_decay) for p in jax.tree.leaves(declared, is_leaf=lambda x: hasattr(x, 'axes'))]
    program = str(jax.make_jaxpr(made.apply)(params, jnp.ones((1, TIME, CHANNELS))))
    return said, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)], program
  for field in dataclasses.fields(made):
    value = getattr(made, field.name)
    assert everything(dataclasses.replace(made, **{field.name: CHANGES[type(value)](value)})) != everything(made), field.name


def test_bounds():
  made = ImplicitFilter(l_max=8, emb_dim=3)
  params = init(jax.random.key(0), made.params(2))
  for call in (lambda: made.taps(params, 9), lambda: made.apply(params, jnp.ones((1, 9, 2))),
               lambda: made.apply(params, jnp.ones((1, 9, 2)), made.init_state(2, 1, 9))):
    with pytest.raises(ValueError, match='9 tokens, but the filter reaches l_max=8'):
      call()
  assert made.max_length == 8 and ModalFilter().max_length is None and DiagonalSSM().max_length is None
  assert made.init_state(2, 1, 100)['inputs'].shape[1] == 8 and made.init_state(2, 1, 3)['inputs'].shape[1] < 8


@pytest.mark.parametrize('wrong, said', [
    (lambda: ImplicitFilter(l_max=8, emb_dim=4), 'emb_dim=4 must be odd and at least 3'), (lambda: ImplicitFilter(l_max=0), 'l_max=0 must be at least 1'),
    (lambda: ImplicitFilter(l_max=8, form='fast'), "form='fast' is not one of direct, epoched, tiled"),
    (lambda: ImplicitFilter(l_max=8, target=1.5), r'target=1.5 must be in \(0, 1\)'), (lambda: ExplicitFilter(l_max=8, threshold=-1.0), 'threshold=-1.0'),
    (lambda: ModalFilter(modes=0), '0 modes, at least 1'), (lambda: DiagonalSSM(state=7), 'state=7 must be even'),
    (lambda: DiagonalSSM(dt_min=1.0), 'dt_min=1.0 and dt_max=0.1')])
def test_options_out_of_range(wrong, said):
  with pytest.raises(ValueError, match=said):
    wrong()
