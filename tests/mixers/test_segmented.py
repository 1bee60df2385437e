"""Reading in segments: the mixer's contract holds, the numbers are the mixer's own, and the work memory does not grow with time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmlab.core.params import init
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers import attention, hgrn2, mamba2, mingru, rwkv7, s4d
from ssmlab.mixers.bidirectional import Bidirectional
from ssmlab.mixers.segmented import Segmented
from ssmlab.models import LM
from tests.mixers.test_contract import (  # noqa: F401  the contract, of the case below
  IDS,
  TIME,
  WIDTH,
  Case,
  close,
  test_an_all_padding_call_leaves_the_state_alone,
  test_any_split_into_calls_is_the_whole,
  test_batch_composition_changes_nothing,
  test_bfloat16_is_finite_and_close,
  test_causal_and_every_parameter_has_a_gradient,
  test_packed_documents_and_padding_change_nothing,
  test_packed_state_goes_on_with_the_last_document,
)


@pytest.fixture(scope='module')
def case():
  yield Case(Segmented(rwkv7.TINY, tokens=3))               # 13 tokens: four segments and a rest, documents that begin inside and between them
  jax.clear_caches()


@pytest.mark.parametrize('mixer', [attention.TINY, mamba2.TINY, mingru.TINY, rwkv7.TINY, s4d.TINY], ids=lambda mixer: type(mixer).__name__)
@pytest.mark.parametrize('tokens', [1, 5, TIME])
def test_outputs_and_gradients_are_the_mixers(mixer, tokens):
  whole, parts = Case(mixer), Case(Segmented(mixer, tokens))
  for ids in (None, IDS):
    loss = lambda case: lambda params, x: jnp.sum(jnp.sin(case.apply(params, x, None, ids)[0]) * (1 if ids is None else (ids > 0)[..., None]))
    value = lambda case: jax.value_and_grad(loss(case), argnums=(0, 1))(whole.params, whole.x)
    (one, one_gradient), (many, many_gradient) = value(whole), value(parts)
    close(many, one)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(one_gradient))
    relative = lambda many, one: float(jnp.abs(many - one).max() / jnp.maximum(jnp.abs(one).max(), 1e-2 * scale))       # each array by its own largest
    assert max(jax.tree.leaves(jax.tree.map(relative, many_gradient, one_gradient))) < 5e-5


@pytest.mark.parametrize('mixer', [rwkv7.TINY, hgrn2.TINY], ids=lambda mixer: type(mixer).__name__)
def test_signals_travel_through_a_network(mixer):
  """Two blocks, the upper of which reads what the lower one says of every token (RWKV-7) or of none (HGRN2)."""
  model = LM(vocab=11, width=WIDTH, pattern=(mixer,), depth=2, channel=GatedMLP(24))
  params = init(jax.random.key(0), model.params())
  params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)
  tokens = jax.random.randint(jax.random.key(1), IDS.shape, 0, 11)
  parted = dataclasses.replace(model, pattern=(Segmented(mixer, 4),))
  one, many = (jax.jit(network.apply)(params, tokens, None, IDS)[0] for network in (model, parted))
  close(jnp.where(IDS[..., None] > 0, many, 0), jnp.where(IDS[..., None] > 0, one, 0))


def test_work_memory_is_that_of_a_segment():
  mixer = mingru.TINY
  params = init(jax.random.key(0), mixer.params(WIDTH))

  def work(mixer, time):
    gradient = jax.jit(jax.grad(lambda params, x: jnp.sum(mixer.apply(params, x)[0] ** 2)))
    memory = gradient.lower(params, jax.ShapeDtypeStruct((2, time, WIDTH), jnp.float32)).compile().memory_analysis().temp_size_in_bytes
    return memory / (2 * time * WIDTH * 4)                  # in arrays of the size of x
  assert work(mixer, 4096) > 8 and work(Segmented(mixer, 64), 4096) < 4


def test_what_it_refuses():
  with pytest.raises(ValueError, match='tokens=0 must be at least 1'):
    Segmented(mingru.TINY, tokens=0)
  with pytest.raises(ValueError, match='Bidirectional has no state'):
    Segmented(Bidirectional(mingru.TINY))
  mesh = jax.sharding.AbstractMesh((1, 1, 1, 2), ('data', 'fsdp', 'tensor', 'sequence'))
  with jax.sharding.use_abstract_mesh(mesh), pytest.raises(ValueError, match='the mesh splits 8 tokens of time, mesh.sequence=2'):
    Segmented(mingru.TINY, tokens=4).apply({}, np.zeros((1, 8, WIDTH), np.float32))
