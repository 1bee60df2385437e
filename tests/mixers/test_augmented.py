"""Augmented shortcuts: the mixer's contract holds around any mixer, here RWKV-7, which also has signals; and what the shortcuts are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.params import init
from ssmlab.layers.shortcut import Bottleneck, Circulant, Full
from ssmlab.mixers import rwkv7
from ssmlab.mixers.augmented import Augmented
from tests.mixers.test_contract import (  # noqa: F401  the contract, of the case below
  Case,
  test_an_all_padding_call_leaves_the_state_alone,
  test_any_split_into_calls_is_the_whole,
  test_batch_composition_changes_nothing,
  test_bfloat16_is_finite_and_close,
  test_causal_and_every_parameter_has_a_gradient,
  test_packed_documents_and_padding_change_nothing,
  test_packed_state_goes_on_with_the_last_document,
)

WIDTH = 16
SHORTCUTS = (Bottleneck(reduction=4), Full(activation='relu'), Circulant(blocks=2))


@pytest.fixture(scope='module')
def case():
  yield Case(Augmented(rwkv7.TINY, SHORTCUTS))
  jax.clear_caches()


def test_a_fresh_bottleneck_changes_nothing(case):
  """W_up starts at zero."""
  mixer = Augmented(rwkv7.TINY, (Bottleneck(reduction=4),))
  params = init(jax.random.key(0), mixer.params(WIDTH))
  np.testing.assert_array_equal(mixer.apply(params, case.x)[0], rwkv7.TINY.apply(params['mixer'], case.x)[0])


def test_what_the_shortcuts_add(case):
  """Output minus the mixer's, against the formulas in numpy; the circulant one by its FFT form."""
  y = np.asarray(case.whole() - rwkv7.TINY.apply(case.params['mixer'], case.x)[0], np.float64)
  x, (down, full, blocks) = np.asarray(case.x, np.float64), (jax.tree.map(lambda p: np.asarray(p, np.float64), case.params['shortcuts'][str(i)]) for i in range(3))
  gelu = lambda v: np.asarray(jax.nn.gelu(jnp.asarray(v, jnp.float32), approximate=False), np.float64)
  pieces = np.fft.fft(x.reshape(*x.shape[:2], 2, 8))
  by_fft = np.fft.ifft(np.einsum('oiq,btiq->btoq', np.fft.fft(blocks['w']), pieces)).real.reshape(x.shape)
  expected = gelu(x @ down['w_down']) @ down['w_up'] + np.maximum(x @ full['w'], 0) + gelu(by_fft + blocks['b'])
  np.testing.assert_allclose(y, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize('shortcut, count', [(Bottleneck(reduction=4), 2 * 16 * 4), (Full(), 256), (Full(bias=True), 272), (Circulant(blocks=4, bias=False), 64),
                                             (Circulant(blocks=4), 80)])
def test_parameters_and_cost(shortcut, count):
  sizes = sum(p.size for p in shortcut.params(WIDTH).values())
  assert sizes == count and shortcut.flops(WIDTH) == (512 if not isinstance(shortcut, Bottleneck) else 2 * count)
  assert Augmented(rwkv7.TINY, (shortcut,)).flops(WIDTH, 64) == rwkv7.TINY.flops(WIDTH, 64) + shortcut.flops(WIDTH)


@pytest.mark.parametrize('shortcut, field, value', [
    (Bottleneck(reduction=4), 'reduction', 8), (Bottleneck(reduction=4), 'activation', 'tanh'), (Bottleneck(reduction=4), 'start', 0.5),
    (Full(), 'activation', None), (Full(), 'bias', True), (Circulant(), 'blocks', 2), (Circulant(), 'activation', None), (Circulant(), 'bias', False)])
def test_every_field_of_a_shortcut_is_read(shortcut, field, value):
  x = jax.random.normal(jax.random.key(5), (2, WIDTH))

  def values(one):
    params = jax.tree.map(lambda p: p + 0.1, init(jax.random.key(0), one.params(WIDTH)))
    return [np.asarray(leaf).tolist() for leaf in (*jax.tree.leaves(params), one.apply(params, x))]
  assert values(shortcut) != values(dataclasses.replace(shortcut, **{field: value}))


def test_refusals():
  with pytest.raises(ValueError, match='Bottleneck: width 16 is not a multiple of reduction=3'):
    Bottleneck(reduction=3).params(16)
  with pytest.raises(ValueError, match='Circulant: width 16 is not a multiple of blocks=5'):
    Circulant(blocks=5).params(16)
  with pytest.raises(ValueError, match="activation 'gelo' is not one of"):
    Full(activation='gelo')
