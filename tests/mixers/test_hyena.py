"""Hyena against the recurrence of its paper in numpy float64, order by order; MultiHyena by heads; what is carried; the first values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.params import init
from ssmlab.eval.generate import generate
from ssmlab.layers.filters import ExplicitFilter, ImplicitFilter, ModalFilter
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.hyena import Hyena
from ssmlab.models.lm import LM

WIDTH, BATCH, TIME = 8, 2, 37
FILTER = ImplicitFilter(l_max=40, emb_dim=5, width=8, frequency=6.0)
CASES = {'order 2': Hyena(FILTER), 'order 4': Hyena(dataclasses.replace(FILTER, form='tiled'), order=4, conv_width=4),
         'two heads': Hyena(FILTER, heads=2), 'distilled': Hyena(ModalFilter(modes=3), order=3)}
CARRIED = 2e-6               # states are float32, whatever the rest is


def drawn(mixer, spread=0.3):
  params = init(jax.random.key(0), mixer.params(WIDTH))
  random = np.random.default_rng(1)
  draw = lambda p: np.asarray(p, np.float64) + spread * random.normal(size=p.shape)
  return jax.tree.map(draw, params), random.normal(size=(BATCH, TIME, WIDTH))


def convolved(h, v):
  """sum over j <= t of h[t - j] v[j]; h [time, channels], v [batch, time, channels, ...]."""
  return np.stack([sum(h[t - j].reshape(-1, *(1,) * (v.ndim - 3)) * v[:, j] for j in range(t + 1)) for t in range(v.shape[1])], axis=1)


def by_definition(mixer, p, x, h):
  """h: the filters [time, width * (order - 1)], or [time, heads]."""
  names = [f'g{i}' for i in range(mixer.order)] + ['v']
  q = {}
  for name in names:
    u = x @ p[f'w_{name}'] + p[f'b_{name}']
    line = np.pad(u, ((0, 0), (mixer.conv_width - 1, 0), (0, 0)))
    q[name] = p[f'b_conv_{name}'] + sum(p[f'conv_{name}'][j] * line[:, j:j + x.shape[1]] for j in range(mixer.conv_width))
  if mixer.heads == 1:
    v = q['v']
    for o in range(mixer.order - 1):
      v = q[f'g{mixer.order - 1 - o}'] * v
      v = convolved(h.reshape(len(h), WIDTH, -1)[:, :, o], v) + p['skip'].reshape(WIDTH, -1)[:, o] * v
    y = q['g0'] * v
  else:
    split = lambda y: y.reshape(*y.shape[:2], mixer.heads, -1)
    z = split(q['g1'])[..., :, None] * split(q['v'])[..., None, :]
    mixed = convolved(h, z) + p['skip'][:, None, None] * z
    y = (split(q['g0'])[..., :, None] * mixed).sum(axis=3).reshape(x.shape)
  return y @ p['w_out'] + p['b_out']


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('precision, tolerance', [('float64', 1e-11), ('float32', 2e-5)])
def test_the_definition(name, precision, tolerance):
  """Whole, in calls with a state, and packed."""
  mixer = CASES[name]
  p, x = drawn(mixer)
  with jax.enable_x64():
    h = np.asarray(mixer.filter.taps(jax.tree.map(jnp.asarray, p['filter']), TIME))
  expected = by_definition(mixer, p, x, h)
  close = lambda mine, theirs, least=0.0: np.testing.assert_allclose(mine, theirs, rtol=0, atol=max(tolerance, least) * np.abs(expected).max())
  with jax.enable_x64(precision == 'float64'):
    params, x = jax.tree.map(lambda v: jnp.asarray(v, precision), (p, x))
    apply = jax.jit(lambda params, x, state, ids: mixer.apply(params, x, state, segment_ids=ids))
    y, none = apply(params, x, None, None)
    assert none is None and y.dtype == precision
    close(y, expected)
    state, seen = mixer.init_state(WIDTH, BATCH, TIME), []
    for begin, end in ((0, 20), (20, 21), (21, TIME)):
      y, state = apply(params, x[:, begin:end], state, None)
      seen.append(y)
    close(jnp.concatenate(seen, axis=1), expected, CARRIED)
    ids = jnp.asarray([[1] * 9 + [2] * 28, [0] * 3 + [5] * 20 + [6] * 14])
    packed, _ = apply(params, x, None, ids)
    for row, begin, end in ((0, 0, 9), (0, 9, 37), (1, 3, 23), (1, 23, 37)):
      close(packed[row, begin:end], by_definition(mixer, p, np.asarray(x)[row:row + 1, begin:end], h)[0])


def test_heads_of_one_channel_are_a_filter_per_channel():
  one, many = Hyena(FILTER), Hyena(FILTER, heads=WIDTH)
  p, x = drawn(one)
  np.testing.assert_allclose(many.apply(p, x)[0], one.apply(p, x)[0], atol=1e-4)


def test_distilling_swaps_the_filter_and_nothing_else():
  """The other parameters have the same paths, shapes and hints; the same filter in another form gives the same output."""
  one, other = Hyena(FILTER, order=3), Hyena(ModalFilter(modes=4), order=3)
  declared = lambda mixer: {name: (param.shape, param.axes, param.weight_decay, param.rate) for name, param in mixer.params(WIDTH).items() if name != 'filter'}
  assert declared(one) == declared(other)
  p, x = drawn(one)
  taps = ExplicitFilter(l_max=40, threshold=0.0)
  swapped = p | dict(filter=dict(k=one.filter.taps(p['filter'], 40)))
  np.testing.assert_allclose(Hyena(taps, order=3).apply(swapped, x)[0], one.apply(p, x)[0], atol=1e-4)


def test_start():
  mixer, width = Hyena(ImplicitFilter(l_max=16, emb_dim=5, width=8)), 400
  params = init(jax.random.key(0), mixer.params(width))
  for name in ('g0', 'g1', 'v'):
    assert abs(params[f'w_{name}'].std() - 0.02) < 1e-3 and not params[f'b_{name}'].any()
    assert 0.99 * 3 ** -0.5 < np.abs(params[f'conv_{name}']).max() <= 3 ** -0.5 and 0.9 * 3 ** -0.5 < params[f'b_conv_{name}'].max() <= 3 ** -0.5
  assert abs(params['skip'].std() - 1) < 0.1 and abs(params['w_out'].std() - 0.02 / 2 ** 0.5) < 1e-3 and not params['b_out'].any()


@pytest.mark.parametrize('wrong, said', [
    (lambda: Hyena(FILTER, order=1), 'order=1 must be at least 2'), (lambda: Hyena(FILTER, order=3, heads=2), 'heads=2 with order=3'),
    (lambda: Hyena(FILTER, heads=3).params(8), 'width 8 is not a multiple of heads 3'), (lambda: Hyena(filter=3), 'filter=3 is not a long filter')])
def test_options_out_of_range(wrong, said):
  with pytest.raises(ValueError, match=said):
    wrong()


def test_a_longer_call_than_the_filter_names_both():
  mixer = Hyena(ImplicitFilter(l_max=8, emb_dim=3))
  params = init(jax.random.key(0), mixer.params(WIDTH))
  for state in (None, mixer.init_state(WIDTH, 1, 20)):
    with pytest.raises(ValueError, match='9 tokens, but the filter reaches l_max=8'):
      mixer.apply(params, jnp.zeros((1, 9, WIDTH)), state)
  assert mixer.max_length == 8 and Hyena().max_length is None
  assert mixer.init_state(WIDTH, 1, 20)['long_0']['inputs'].shape[1] == 8


@pytest.mark.parametrize('mixer', [Hyena(FILTER, order=3), Hyena(dataclasses.replace(FILTER, form='direct'), heads=2)], ids=['order 3', 'two heads'])
def test_generation(mixer):
  """The filter is made once, not at every token; tokens are those of reading everything again; what does not fit is refused."""
  model = LM(vocab=17, width=WIDTH, depth=3, pattern=(mixer, Hyena(ModalFilter())), norm=LayerNorm())
  params = jax.tree.map(lambda p: p + 0.2 * jax.random.normal(jax.random.key(p.size), p.shape), init(jax.random.key(0), model.params()))
  prompt = np.arange(2 * 5, dtype=np.int32).reshape(2, 5)
  tokens, state = generate(model, params, prompt, 9, temperature=0.0)
  read = jax.jit(model.apply)
  whole = np.concatenate([prompt, tokens], axis=1)
  np.testing.assert_array_equal(np.argmax(read(params, whole)[0], axis=-1)[:, 4:-1], tokens)
  step = lambda model, params: str(jax.make_jaxpr(model.apply)(params, prompt[:, :1], model.init_state(2, 14)))
  made, turned = model.for_generation(14)
  assert ' sin ' in step(model, params) and step(made, turned(params)).count(' sin ') < step(model, params).count(' sin ')
  state = model.init_state(2, 40)
  first, state = generate(model, params, prompt, 4, temperature=0.0, state=state)
  more, state = generate(model, params, [[], []], 5, temperature=0.0, state=state)
  np.testing.assert_array_equal(np.concatenate([first, more], axis=1), tokens)
  with pytest.raises(ValueError, match='prompt of 5 tokens and 36 new ones are more than the 40'):
    generate(model, params, prompt, 36)
  with pytest.raises(ValueError, match='prompt of 0 tokens and 27 new ones are more than the 26'):
    generate(model, params, [[], []], 27, state=state)
  small = generate(model, params, prompt, 1, state=model.init_state(2, 8))[1]
  with pytest.raises(ValueError, match='a prompt of 0 tokens and 3 new ones are more than the 2 that the state has room for'):
    generate(model, params, [[], []], 3, state=small)
