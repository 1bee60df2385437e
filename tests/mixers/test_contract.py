"""The contract of design section 4, for every file in ssmlab/mixers: it walks the folder and takes each TINY."""

import dataclasses
import importlib
import pkgutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmlab.mixers
from ssmlab.core import mesh
from ssmlab.core.params import Param, init

WIDTH, BATCH, TIME = 16, 3, 13
# What wraps another mixer has tests of its own: test_bidirectional.py, test_augmented.py, test_segmented.py.
NAMES = sorted(m.name for m in pkgutil.iter_modules(ssmlab.mixers.__path__) if m.name not in ('augmented', 'bidirectional', 'segmented'))
# Three documents, with padding on the left, in the middle and on the right.
IDS = np.array([[1] * 5 + [2] * 8, [0, 0] + [3] * 4 + [4] * 1 + [5] * 6, [7] * 6 + [0] + [7] * 3 + [0] * 3], np.int32)


def tiny(name):
  return importlib.import_module(f'ssmlab.mixers.{name}').TINY


class Case:
  """A mixer with parameters away from their start (zero matrices would hide everything) and one compiled function for all the tests."""

  def __init__(self, mixer):
    self.mixer = mixer
    params = init(jax.random.key(0), self.mixer.params(WIDTH))
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    self.params = jax.tree.map(lambda p, k: p + 0.1 * jax.random.normal(k, p.shape), params, keys)
    self.x = jax.random.normal(jax.random.key(2), (BATCH, TIME, WIDTH))
    self.apply = jax.jit(lambda params, x, state, segment_ids: self.mixer.apply(params, x, state, segment_ids=segment_ids))

  def whole(self, x=None, segment_ids=None):
    y, state = self.apply(self.params, self.x if x is None else x, None, segment_ids)
    assert state is None
    return y

  def state(self, batch=BATCH):
    return self.mixer.init_state(WIDTH, batch, TIME)


@pytest.fixture(scope='module', params=NAMES)
def case(request):
  yield Case(tiny(request.param))
  jax.clear_caches()                                     # compiled programs of thirty mixers are gigabytes


def close(a, b, rtol=2e-5):
  scale = float(jnp.abs(b).max())
  chex.assert_trees_all_close(a, b, atol=rtol * max(scale, 1.0), rtol=0)


def test_config_is_its_repr_and_axes_have_rules(case):
  module = importlib.import_module(type(case.mixer).__module__)
  assert eval(repr(case.mixer), vars(module)) == case.mixer and hash(case.mixer) == hash(eval(repr(case.mixer), vars(module)))
  declared = jax.tree.leaves(case.mixer.params(WIDTH), is_leaf=lambda x: isinstance(x, Param))
  assert all(isinstance(p, Param) for p in declared)
  assert {axis for p in declared for axis in p.axes} <= {None, *mesh.RULES}
  assert case.mixer.flops(WIDTH, 64) >= 2 * sum(p.size for p in declared if len(p.shape) == 2) > 0


def test_state_starts_as_zeros_that_lead_with_batch(case):
  for leaf in jax.tree.leaves(case.state()):
    assert leaf.shape[0] == BATCH and not np.asarray(leaf).any()


def test_causal_and_every_parameter_has_a_gradient(case):
  seen = 7
  weights = jax.random.normal(jax.random.key(3), (BATCH, seen, WIDTH))

  def read(params, x):
    signals = case.mixer.signals(x)
    y, _, signals = case.mixer.apply_signals(params, x, None, signals)
    y, _, _ = case.mixer.apply_signals(params, jnp.sin(3 * x) + y, None, signals)      # again, as a second layer: signals are read there
    return jnp.sum(y[:, :seen] * weights)
  d_params, d_x = jax.jit(jax.grad(read, argnums=(0, 1)))(case.params, case.x)
  assert np.abs(d_x[:, seen:]).max() == 0 and (np.abs(d_x[:, :seen]).max(axis=-1) > 0).all()
  dead = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(d_params) if not np.abs(leaf).max() > 0]
  assert not dead and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(d_params))


def test_any_split_into_calls_is_the_whole(case):
  whole = case.whole()
  for lengths in ((6, 1, 6), (1,) * TIME, (TIME,)):
    state, parts, at = case.state(), [], 0
    for length in lengths:
      y, state = case.apply(case.params, case.x[:, at:at + length], state, None)
      parts.append(y)
      at += length
    close(jnp.concatenate(parts, axis=1), whole)


def alone(case, row, begin, end, at):
  """Outputs of one document by itself, its tokens at position `at` of a padded row; the same compiled function as the packed batch."""
  x = np.full((BATCH, TIME, WIDTH), 3.0, np.float32)
  ids = np.zeros((BATCH, TIME), np.int32)
  x[0, at:at + end - begin], ids[0, at:at + end - begin] = case.x[row, begin:end], 9
  return case.whole(jnp.asarray(x), jnp.asarray(ids))[0, at:at + end - begin]


def test_packed_documents_and_padding_change_nothing(case):
  packed = case.whole(segment_ids=jnp.asarray(IDS))
  for row, begin, end in ((0, 0, 5), (0, 5, 13), (1, 2, 6), (1, 6, 7), (1, 7, 13), (2, 0, 6), (2, 7, 10)):
    for at in {0, TIME - (end - begin), min(2, TIME - (end - begin))}:
      close(packed[row, begin:end], alone(case, row, begin, end, at))
  close(case.whole(segment_ids=jnp.ones((BATCH, TIME), jnp.int32)), case.whole())


def test_packed_state_goes_on_with_the_last_document(case):
  """After packed rows with padding the state is that of the last document alone, and padding in between calls changes nothing."""
  after, at_end = case.x[:, :6] * 0.5, [(0, 5, 13), (1, 7, 13), (2, 7, 10)]
  _, state = case.apply(case.params, case.x, case.state(), jnp.asarray(IDS))
  y, _ = case.apply(case.params, after, state, None)
  for row, begin, end in at_end:
    x = jnp.concatenate([case.x[row, begin:end], after[row]])
    x = jnp.pad(x, ((TIME + 6 - len(x), 0), (0, 0)))[-TIME:] if len(x) > TIME else jnp.pad(x, ((TIME - len(x), 0), (0, 0)))
    ids = (jnp.arange(TIME) >= TIME - (end - begin + 6)).astype(jnp.int32)
    if end - begin + 6 <= TIME:
      close(y[row], case.whole(jnp.broadcast_to(x, (BATCH, TIME, WIDTH)), jnp.broadcast_to(ids, (BATCH, TIME)))[0, -6:])
  padded = jnp.pad(after, ((0, 0), (4, 3), (0, 0)), constant_values=2.0)
  ids = jnp.asarray(np.repeat([[0] * 4 + [1] * 6 + [0] * 3], BATCH, axis=0), jnp.int32)
  y_padded, state_padded = case.apply(case.params, padded, state, ids)
  close(y_padded[:, 4:10], y)
  y, state = case.apply(case.params, after, state, None)
  one = case.x[:, :1]
  close(case.apply(case.params, one, state_padded, None)[0], case.apply(case.params, one, state, None)[0])


def test_an_all_padding_call_leaves_the_state_alone(case):
  _, state = case.apply(case.params, case.x[:, :6], case.state(), None)
  _, after = case.apply(case.params, case.x, state, jnp.zeros((BATCH, TIME), jnp.int32))
  one = case.x[:, :1]
  close(case.apply(case.params, one, after, None)[0], case.apply(case.params, one, state, None)[0])


def test_batch_composition_changes_nothing(case):
  close(case.whole(case.x[::-1])[::-1], case.whole())
  close(case.whole(case.x.at[1:].set(50.0))[0], case.whole()[0])


def test_bfloat16_is_finite_and_close(case):
  def cast(param, value):
    return value if param.full_precision else value.astype(jnp.bfloat16)
  params = jax.tree.map(cast, case.mixer.params(WIDTH), case.params, is_leaf=lambda x: isinstance(x, Param))
  whole = case.whole()
  y, _ = case.apply(params, case.x.astype(jnp.bfloat16), None, None)
  assert y.dtype == jnp.bfloat16
  assert float(jnp.sqrt(jnp.mean((y - whole) ** 2) / jnp.mean(whole ** 2))) < 0.05
  for scale in (30.0, -30.0):                                # every gate saturated, both ways
    biased = jax.tree.map(lambda p, v: v if p.weight_decay else v + jnp.asarray(scale, v.dtype), case.mixer.params(WIDTH), params,
                          is_leaf=lambda x: isinstance(x, Param))
    assert np.isfinite(np.asarray(case.apply(biased, case.x.astype(jnp.bfloat16), None, None)[0], np.float32)).all()


CHANGES = {int: lambda v: (v + 1, 2 * v, v // 2), float: lambda v: (v * 1.5 + 0.25, v / 2), bool: lambda v: (not v,), type(None): lambda v: (1, 2, 4),
           str: lambda v: {'float32': ('bfloat16',), 'xla': ('splash',)}.get(v, ())}


def test_every_field_is_read(case):
  """Another value gives other parameters or another output."""
  def fingerprint(mixer):
    params = jax.eval_shape(lambda: init(jax.random.key(0), mixer.params(WIDTH)))
    return [(jax.tree_util.keystr(p), a.shape) for p, a in jax.tree_util.tree_leaves_with_path(params)], jax.tree.map(
        lambda a: (a.shape, a.dtype), jax.eval_shape(lambda: mixer.init_state(WIDTH, 1, TIME)))

  def output(mixer):
    return mixer.apply(init(jax.random.key(0), mixer.params(WIDTH)) if len(jax.tree.leaves(case.params)) == 0 else case.params, case.x)[0]

  for field in dataclasses.fields(case.mixer):
    value = getattr(case.mixer, field.name)
    candidates = CHANGES[type(value)](value) if type(value) in CHANGES else (None,)
    if field.type and 'RMSNorm' in str(field.type) and value is None:
      from ssmlab.layers.norms import RMSNorm
      candidates = (RMSNorm(),)
    changed = False
    for candidate in candidates:
      try:
        other = dataclasses.replace(case.mixer, **{field.name: candidate})
        if fingerprint(other) != fingerprint(case.mixer):
          changed = True
          break
        values = lambda m: jax.tree.leaves(init(jax.random.key(0), m.params(WIDTH)))
        if any((a != b).any() for a, b in zip(values(other), values(case.mixer))):
          changed = True
          break
        if (output(other) != output(case.mixer)).any():
          changed = True
          break
      except ValueError as error:                            # not a value that this mixer takes, or that this platform can run
        changed |= f'{field.name}={candidate!r} runs on' in str(error)
    assert changed, f'{field.name} of {type(case.mixer).__name__} changes nothing'
