"""Muon: which arrays it takes, that stacked matrices are orthogonal one by one, and that it trains."""

import jax
import numpy as np

from ssmlab.core import mesh as meshes
from ssmlab.core.params import Param, init
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers import attention, mamba2, rwkv7
from ssmlab.models import LM
from ssmlab.tasks import NextToken
from ssmlab.train import AdamW, Muon
from ssmlab.train.step import Trainer

MODEL = LM(vocab=32, width=16, pattern=(attention.TINY, mamba2.TINY), depth=3, channel=GatedMLP(24))
OPTIM = Muon(peak_lr=1.0, warmup_steps=1, decay='constant', weight_decay=0.0, clip=0.0)


def updates(optim, model):
  params = init(jax.random.key(0), model.params())
  gradient = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
  tx = optim.transform(model.params(), 10)
  return jax.jit(tx.update)(gradient, tx.init(params), params)[0]


def test_every_matrix_of_a_stack_is_orthogonal_and_of_adam_s_size():
  step = updates(OPTIM, MODEL)
  for group in ('blocks', 'tail'):
    for matrix in (step[group]['0']['mixer']['w_q'], step[group]['0']['channel']['w_gate'], step[group]['0']['channel']['w_down']):
      for one in np.asarray(matrix).reshape(-1, *matrix.shape[-2:]):
        singular = np.linalg.svd(one, compute_uv=False) / (0.2 * max(one.shape) ** 0.5)
        assert 0.6 < singular.min() and singular.max() < 1.3           # five iterations stop near 1
        assert 0.1 < np.sqrt(np.mean(one ** 2)) < 0.3


def test_the_rest_goes_to_adam():
  step, adam = updates(OPTIM, MODEL), updates(AdamW(**{name: getattr(OPTIM, name) for name in ('peak_lr', 'warmup_steps', 'decay', 'weight_decay', 'clip')}), MODEL)
  same = jax.tree_util.tree_map_with_path(lambda path, a, b: bool((a == b).all()), step, adam)
  assert same['embedding']['table'] and all(jax.tree.leaves(same['head'])) and all(jax.tree.leaves(same['norm']))
  mixer = same['blocks']['1']['mixer']
  assert all(mixer[name] for name in mixer if not name.startswith('w_')), mixer        # convolution, A_log, dt bias, D, norm
  assert not any(mixer[name] for name in mixer if name.startswith('w_')), mixer
  small = LM(vocab=8, width=16, pattern=(rwkv7.TINY,), depth=1)
  assert all(jax.tree.leaves(jax.tree.map(lambda u: np.isfinite(u).all(), updates(OPTIM, small))))


def test_it_trains_and_its_state_is_sharded():
  optim, model = Muon(peak_lr=0.02, warmup_steps=1), LM(vocab=32, width=16, pattern=(attention.TINY,), depth=2, channel=GatedMLP(16))
  trainer = Trainer(model, NextToken(), optim.transform(model.params(), 30), meshes.make(devices=jax.devices()[:1]), optim.schedule(30))
  tokens = np.arange(64, dtype=np.int32).reshape(4, 16) % 7
  batch = dict(tokens=tokens, targets=np.roll(tokens, -1, axis=1), segment_ids=np.ones_like(tokens))
  state, step, losses = trainer.fresh(0), trainer.compiled(), []
  for _ in range(12):
    state, measured = step(state, batch)
    losses.append(float(measured['loss']))
  assert losses[-1] < 0.5 * losses[0]
  assert jax.tree.structure(trainer.shardings().opt_state) == jax.tree.structure(state.opt_state)


def test_what_is_not_learned_has_no_moments_and_stays():
  declared = dict(blocks=dict(w=Param((4, 4), (None, None))), still=Param((7,), (None,), rate=0.0))
  params = init(jax.random.key(0), declared)
  for optim in (AdamW(weight_decay=0.5), Muon(weight_decay=0.5)):
    tx = optim.transform(declared, 10)
    state = tx.init(params)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert (4, 4) in shapes and (7,) not in shapes
    step, _ = tx.update(jax.tree.map(lambda a: a + 1, params), state, params)
    assert not np.any(step['still']) and np.all(step['blocks']['w'])
