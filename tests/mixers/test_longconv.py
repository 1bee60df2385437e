"""Plain long convolutions and StripedHyena against their formulas in numpy float64; the projections' layout; the first values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.params import init
from ssmlab.layers.filters import ExplicitFilter, ImplicitFilter, ModalFilter
from ssmlab.mixers.longconv import LongConv
from ssmlab.mixers.striped_hyena import StripedHyena

WIDTH, BATCH, TIME = 8, 2, 37
PLAIN = {'explicit': LongConv(ExplicitFilter(l_max=40, threshold=0.05)), 'implicit': LongConv(ImplicitFilter(40, 5, 8)), 'modal': LongConv()}
STRIPED = {'published': StripedHyena(heads=4), 'one head': StripedHyena(heads=1, conv_width=2), 'more modes': StripedHyena(heads=2, filter=ModalFilter(modes=5))}


def drawn(mixer):
  params = init(jax.random.key(0), mixer.params(WIDTH))
  random = np.random.default_rng(1)
  return jax.tree.map(lambda p: np.asarray(p, np.float64) + 0.2 * random.normal(size=p.shape), params), random.normal(size=(BATCH, TIME, WIDTH))


def convolved(h, v):
  return np.stack([sum(h[t - j] * v[:, j] for j in range(t + 1)) for t in range(v.shape[1])], axis=1)


def plain(mixer, p, x, h):
  """Skip, exact GELU, and the linear map to 2 H that the second half gates."""
  y = convolved(h, x) + p['skip'] * x
  y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
  return (y @ p['w_out'] + p['b_out']) / (1 + np.exp(-(y @ p['w_gate'] + p['b_gate'])))


def striped(mixer, p, x, h):
  u, k = x @ p['w_in'] + p['b_in'], mixer.conv_width
  line = np.pad(u, ((0, 0), (k - 1, 0), (0, 0)))
  z = p['b_conv'] + sum(p['conv'][j] * line[:, j:j + TIME] for j in range(k))
  size = WIDTH // mixer.heads
  part = lambda which: np.concatenate([z[..., (3 * head + which) * size:(3 * head + which + 1) * size] for head in range(mixer.heads)], axis=-1)
  x2, x1, v = part(0), part(1), part(2)
  return (x2 * (convolved(h, x1 * v) + p['skip'] * x1 * v)) @ p['w_out'] + p['b_out']


@pytest.mark.parametrize('mixer, formula', [*((m, plain) for m in PLAIN.values()), *((m, striped) for m in STRIPED.values())],
                         ids=[*PLAIN, *STRIPED])
@pytest.mark.parametrize('precision, tolerance', [('float64', 1e-11), ('float32', 2e-5)])
def test_the_definition(mixer, formula, precision, tolerance):
  p, x = drawn(mixer)
  with jax.enable_x64():
    h = np.asarray(mixer._filter.taps(jax.tree.map(jnp.asarray, p['filter']), TIME))
  expected = formula(mixer, p, x, h)
  with jax.enable_x64(precision == 'float64'):
    params, x = jax.tree.map(lambda v: jnp.asarray(v, precision), (p, x))
    y, none = jax.jit(mixer.apply)(params, x)
    assert none is None and y.dtype == precision
    state, seen = mixer.init_state(WIDTH, BATCH, TIME), []
    for begin, end in ((0, 20), (20, 21), (21, TIME)):
      part, state = jax.jit(mixer.apply)(params, x[:, begin:end], state)
      seen.append(part)
  for result, allowed in ((y, tolerance), (np.concatenate(seen, axis=1), max(tolerance, 2e-6))):             # states are float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=allowed * np.abs(expected).max())


def test_stripes_in_the_published_form():
  """h[t] = sum over two complex modes of Re(R p^t), no other coefficient; the state is x <- p x + x1 v."""
  mixer = STRIPED['published']
  p, _ = drawn(mixer)
  f = p['filter']
  assert set(f) == {'log_rate', 'angle', 'real', 'imaginary'} and f['angle'].shape == (2, WIDTH)
  pole = np.exp(-np.exp(f['log_rate']) + 1j * f['angle'])
  h = ((f['real'] + 1j * f['imaginary']) * pole ** np.arange(20)[:, None, None]).sum(axis=1).real
  np.testing.assert_allclose(mixer._filter.taps(jax.tree.map(jnp.float32, f), 20), h, atol=1e-5 * np.abs(h).max())
  sizes = {leaf.shape for leaf in jax.tree.leaves(mixer.init_state(WIDTH, 1, 10 ** 6)['long'])}
  assert sizes == {(1, 2, WIDTH)} and mixer.max_length is None


def test_starts():
  params = init(jax.random.key(0), StripedHyena(heads=4).params(400))
  assert abs(params['w_in'].std() - 0.02) < 1e-3 and abs(params['w_out'].std() - 0.02 / 2 ** 0.5) < 1e-3
  assert not params['skip'].any() and not params['b_in'].any() and 0.99 * 3 ** -0.5 < np.abs(params['conv']).max() <= 3 ** -0.5
  params = init(jax.random.key(0), LongConv(ExplicitFilter(l_max=16)).params(400))
  assert abs(params['skip'].std() - 1) < 0.1 and 0.99 / 20 < np.abs(params['w_gate']).max() <= 1 / 20


def test_options_out_of_range():
  with pytest.raises(ValueError, match='width 8 is not a multiple of heads 3'):
    StripedHyena(heads=3).params(8)
  with pytest.raises(ValueError, match='heads=0 and conv_width=3 must be at least 1'):
    StripedHyena(heads=0)
  with pytest.raises(ValueError, match="filter='fft' is not a long filter"):
    LongConv('fft')
  with pytest.raises(ValueError, match='41 tokens, but the filter reaches l_max=40'):
    PLAIN['explicit'].apply(init(jax.random.key(0), PLAIN['explicit'].params(4)), jnp.zeros((1, 41, 4)))
