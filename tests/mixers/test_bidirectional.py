"""Both directions: documents, padding, symmetry, gradients, and what a model around it allows.  (The contract's causality does not apply.)"""

import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmlab
from ssmlab.core.params import Param, init, size
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding
from ssmlab.mixers.bidirectional import Bidirectional

WIDTH, BATCH, TIME = 16, 2, 12
IDS = np.array([[1] * 5 + [2] * 7, [0, 0] + [3] * 4 + [4] + [0] + [5] * 3 + [0]], np.int32)
DOCUMENTS = ((0, 0, 5), (0, 5, 12), (1, 2, 6), (1, 6, 7), (1, 8, 11))
NAMES = ('rwkv7', 'mamba2', 'rglru')


class Case:
  """A wrapped mixer, parameters away from their start, one compiled function."""

  def __init__(self, name):
    self.inner = importlib.import_module(f'ssmlab.mixers.{name}').TINY
    self.mixer = Bidirectional(self.inner)
    self.params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), init(jax.random.key(0), self.mixer.params(WIDTH)))
    self.x = jax.random.normal(jax.random.key(1), (BATCH, TIME, WIDTH))
    self.apply = jax.jit(lambda params, x, ids: self.mixer.apply(params, x, segment_ids=ids)[0])

  def __call__(self, x=None, ids=None, params=None):
    return self.apply(self.params if params is None else params, self.x if x is None else x, ids)


@pytest.fixture(scope='module', params=NAMES)
def case(request):
  return Case(request.param)


def close(a, b):
  chex.assert_trees_all_close(a, b, atol=2e-5 * max(float(jnp.abs(b).max()), 1), rtol=0)


def test_is_one_mixer_each_way(case):
  forward, _ = case.inner.apply(case.params['forward'], case.x)
  backward, _ = case.inner.apply(case.params['backward'], case.x[:, ::-1])
  close(case(), forward + backward[:, ::-1])


def test_every_token_sees_its_document_and_no_other(case):
  """By gradients: tokens to the left and to the right, but nothing of another document or of padding."""
  read = jax.jit(jax.grad(lambda x, row, at: jnp.sum(jnp.sin(case.mixer.apply(case.params, x, segment_ids=jnp.asarray(IDS))[0][row, at]))))
  for row, begin, end in DOCUMENTS:
    reach = np.abs(read(case.x, row, (begin + end) // 2)).max(axis=-1)
    assert (reach[row, begin:end] > 0).all()
    reach[row, begin:end] = 0
    assert not reach.any()


def test_packed_documents_and_padding_change_nothing(case):
  packed = case(ids=jnp.asarray(IDS))
  for row, begin, end in DOCUMENTS:
    for at in (0, TIME - (end - begin)):
      x, ids = np.full((BATCH, TIME, WIDTH), 3.0, np.float32), np.zeros((BATCH, TIME), np.int32)
      x[0, at:at + end - begin], ids[0, at:at + end - begin] = case.x[row, begin:end], 9
      close(packed[row, begin:end], case(jnp.asarray(x), jnp.asarray(ids))[0, at:at + end - begin])
  close(case(ids=jnp.ones((BATCH, TIME), jnp.int32)), case())


def test_swapped_parameters_on_flipped_input_give_the_flipped_output(case):
  swapped = dict(forward=case.params['backward'], backward=case.params['forward'])
  for ids in (None, jnp.asarray(IDS)):
    real = jnp.ones((BATCH, TIME, 1)) if ids is None else (ids != 0)[..., None]
    flipped = case(case.x[:, ::-1], None if ids is None else ids[:, ::-1], swapped)[:, ::-1]
    close(flipped * real, case(ids=ids) * real)


def test_every_parameter_has_a_gradient_and_its_own_draw(case):
  def read(params, x):
    y, _, signals = case.mixer.apply_signals(params, x, None, case.mixer.signals(x))
    y, _, _ = case.mixer.apply_signals(params, jnp.sin(3 * x) + y, None, signals)          # as a second layer: signals are read there
    return jnp.sum(y * jax.random.normal(jax.random.key(2), y.shape))
  gradient = jax.jit(jax.grad(read))(case.params, case.x)
  dead = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(gradient) if not np.abs(leaf).max() > 0]
  assert not dead and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  start = init(jax.random.key(0), case.mixer.params(WIDTH))
  assert any((a != b).any() for a, b in zip(jax.tree.leaves(start['forward']), jax.tree.leaves(start['backward'])))


def test_costs_and_repr(case):
  assert size(case.mixer.params(WIDTH)) == 2 * size(case.inner.params(WIDTH)) and case.mixer.flops(WIDTH, 64) == 2 * case.inner.flops(WIDTH, 64)
  module = importlib.import_module(type(case.inner).__module__)
  assert eval(repr(case.mixer), vars(module) | dict(Bidirectional=Bidirectional)) == case.mixer
  assert all(isinstance(p, Param) for p in jax.tree.leaves(case.mixer.params(WIDTH), is_leaf=lambda p: isinstance(p, Param)))


def test_there_is_no_state(case):
  with pytest.raises(ValueError, match=rf'Bidirectional\({type(case.inner).__name__}\) reads in both directions and has no state'):
    case.mixer.init_state(WIDTH, BATCH, TIME)
  with pytest.raises(ValueError, match='has no state: state must be None'):
    case.mixer.apply(case.params, case.x, case.inner.init_state(WIDTH, BATCH, TIME))


def test_in_a_model(case):
  """Two layers under `lax.scan`: packed documents are the separate ones, also with signals; a state is refused in one line."""
  model = ssmlab.LM(vocab=17, width=WIDTH, pattern=(case.mixer,), depth=2, channel=GatedMLP(24), embedding=Embedding(size=1.0))
  params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), ssmlab.init(jax.random.key(0), model.params()))
  tokens = jax.random.randint(jax.random.key(3), (BATCH, TIME), 0, 17)
  apply = jax.jit(model.apply)
  logits, state = apply(params, tokens, None, jnp.asarray(IDS))
  assert state is None and logits.shape == (BATCH, TIME, 17)
  alone = jnp.where(jnp.arange(TIME) < 4, jnp.roll(tokens, -2, axis=1), 0), jnp.broadcast_to(jnp.arange(TIME) < 4, tokens.shape).astype(jnp.int32)
  close(logits[1, 2:6], apply(params, alone[0], None, alone[1])[0][1, :4])
  with pytest.raises(ValueError, match='has no state'):
    model.init_state(BATCH, TIME)
