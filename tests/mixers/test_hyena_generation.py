"""Hyena one token at a time, 4096 of them, in its four forms, against the full forward."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.params import init
from ssmlab.eval.distill import fit
from ssmlab.layers.filters import ImplicitFilter, ModalFilter
from ssmlab.mixers.hyena import Hyena

TIME, WIDTH = 4096, 4
MIXER = Hyena(ImplicitFilter(l_max=TIME, emb_dim=5, width=8))


def token_by_token(mixer, params, x):
  """y [batch, time, width] from a scan over single tokens."""
  mixer, turned = mixer.for_generation(TIME)

  def one(state, token):
    y, state = mixer.apply(params, token[:, None], state)
    return state, y[:, 0]
  params = turned(params)
  return jnp.moveaxis(jax.jit(lambda: jax.lax.scan(one, mixer.init_state(WIDTH, len(x), TIME), jnp.moveaxis(x, 1, 0))[1])(), 0, 1)


@pytest.fixture(scope='module')
def whole():
  params = init(jax.random.key(0), MIXER.params(WIDTH))
  params['filter']['w_out'] *= 10
  x = jax.random.normal(jax.random.key(1), (1, TIME, WIDTH))
  params['w_out'], params['b_conv_v'] = 50 * params['w_out'], params['b_conv_v'] + 1.0
  return params, x, np.asarray(MIXER.apply(params, x)[0])


@pytest.mark.parametrize('form', ['direct', 'epoched', 'tiled'])
def test_the_exact_forms(whole, form):
  params, x, y = whole
  mixer = dataclasses.replace(MIXER, filter=dataclasses.replace(MIXER.filter, form=form))
  np.testing.assert_allclose(token_by_token(mixer, params, x), y, atol=3e-6 * np.abs(y).max(), rtol=0)


def test_distilled_within_its_error(whole):
  """A filter's change is at most |h' - h| |v|; then come the last gate and the output's matrix."""
  params, x, y = whole
  h = np.asarray(MIXER.filter.taps(params['filter'], TIME), np.float64)
  modal = fit(h, 4)
  error = np.linalg.norm(np.asarray(ModalFilter(modes=4).taps(modal, TIME)) - h, axis=0)
  found = token_by_token(dataclasses.replace(MIXER, filter=ModalFilter(modes=4)), params | dict(filter=modal), x)
  short, _ = MIXER.projections(params, x)
  allowed = np.abs(short['g0']) * error * np.linalg.norm(short['g1'] * short['v'], axis=1)[:, None] @ np.abs(params['w_out'])
  change = np.abs(found - y)
  assert (error / np.linalg.norm(h, axis=0)).max() < 0.5
  assert (change <= allowed + 1e-5 * np.abs(y).max()).all() and change.max() > 1e-5 * np.abs(y).max()
