"""Run by test_sharding.py in a process with eight virtual devices: the training step of each mixer that is named on two meshes against one device.

Prints 'NAME gathers loss-difference gradient-difference reading-difference' for every mixer; gathers: places where a device gets an activation of
whole rows; reading: a call that carries a state, its time split.
"""

import importlib
import re
import sys

import jax
import numpy as np

from ssmlab.core import mesh as meshes
from ssmlab.core.params import init
from ssmlab.eval.heldout import place
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding
from ssmlab.layers.shortcut import Bottleneck, Circulant
from ssmlab.mixers import rglru
from ssmlab.mixers.augmented import Augmented
from ssmlab.mixers.bidirectional import Bidirectional
from ssmlab.mixers.segmented import Segmented
from ssmlab.models import LM
from ssmlab.tasks import NextToken

WRAPPED = {'bidirectional': Bidirectional(rglru.TINY), 'augmented': Augmented(rglru.TINY, (Bottleneck(reduction=4), Circulant(blocks=2))),
           'segmented': Segmented(rglru.TINY, tokens=5)}
MESHES = dict(data=2, fsdp=2, tensor=2), dict(tensor=2, sequence=4)


def parameters(model):
  """None of them is zero."""
  return jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), init(jax.random.key(0), model.params()))


def gradients(model, task, params, batch, mesh):
  """((loss, gradient) of the batch on a mesh, as numpy, the compiled program's text)."""
  shardings = meshes.shardings(model.params(), mesh)
  params = jax.tree.map(jax.device_put, params, shardings)
  with meshes.use(mesh):
    loss = lambda p, b: task.loss(model, p, b, jax.random.key(0))[0] / b['targets'].size
    arguments = params, place(batch, mesh)
    step = jax.jit(jax.value_and_grad(loss), out_shardings=(meshes.replicated(mesh), shardings)).lower(*arguments).compile()
    return jax.tree.map(np.asarray, step(*arguments)), step.as_text()


def reading(model, params, batch) -> float:
  """Largest difference between eight devices, which share the time of a call with a state, and one: of the logits, and of those of a call that goes on
  from the last state on one device (how a state is scaled is a mixer's own affair).  Relative to the largest logit; 0 where nothing is carried."""
  if not all(block.mixer.has_state for block in model.blocks):
    return 0.0
  tokens, ids = batch['tokens'], batch['segment_ids']
  alone, shared = meshes.make(devices=jax.devices()[:1]), meshes.make(meshes.MeshConfig(**MESHES[-1]))
  found = []
  for mesh in (alone, shared):
    with meshes.use(mesh):
      given = place(dict(tokens=tokens, segment_ids=ids), mesh)
      here = jax.tree.map(jax.device_put, params, meshes.shardings(model.params(), mesh))
      logits, state = jax.jit(model.apply)(here, given['tokens'], model.init_state(len(tokens), 2 * tokens.shape[1]), given['segment_ids'])
    more, _ = jax.jit(model.apply)(params, tokens[:, ::-1], jax.tree.map(np.asarray, state), np.broadcast_to(ids[:, -1:], ids.shape))
    found.append(np.concatenate([logits, more], axis=1))
  one, many = found
  return float(np.abs(many - one).max() / np.abs(one).max())


def compare(model, task, batch, floor: float = 0.0, of_sizes=MESHES) -> tuple[int, float, float]:
  """(gathers, loss, gradient): largest difference between eight devices and one, relative to the largest number of the array.

  floor: an array counts as at least so large, as a share of the largest one: a key bias, say, has no gradient but rounding.
  of_sizes: the sizes of the eight devices' axes, of each mesh.
  """
  params = parameters(model)
  one, _ = gradients(model, task, params, batch, meshes.make(devices=jax.devices()[:1]))
  least = floor * max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(one[1])) + 1e-12
  relative = lambda a, b: float(np.abs(a - b).max() / max(np.abs(b).max(), least))
  many, texts = zip(*(gradients(model, task, params, batch, meshes.make(meshes.MeshConfig(**sizes))) for sizes in of_sizes))
  found = [jax.tree.map(relative, numbers, one) for numbers in many]
  rows, time = batch['tokens'].shape[0], batch['tokens'].shape[1] // getattr(model, 'chunk', 1)
  gathers = len(re.findall(rf'= f32\[{rows},{time},[\d,]*\]\S* all-gather(?:-start)?\(', texts[-1]))
  return gathers, max(loss for loss, _ in found), max(max(jax.tree.leaves(gradient)) for _, gradient in found)


def main(names):
  random = np.random.default_rng(0)
  ids = np.sort(random.integers(1, 4, (8, 16)), axis=1).astype(np.int32)
  batch = dict(tokens=random.integers(0, 32, (8, 16), dtype=np.int32), targets=random.integers(0, 32, (8, 16), dtype=np.int32), segment_ids=ids)
  for name in names:
    module = importlib.import_module(f'ssmlab.mixers.{name}')
    mixer = WRAPPED[name] if name in WRAPPED else module.TINY
    model = LM(vocab=32, width=16, pattern=(mixer,), depth=2, channel=GatedMLP(32), embedding=Embedding(size=1.0))
    if name == 'segmented':                                  # which refuses a mesh that splits time
      print(name, *compare(model, NextToken(), batch, of_sizes=MESHES[:1]), flush=True)
    else:
      print(name, *compare(model, NextToken(), batch), reading(model, parameters(model), batch), flush=True)


if __name__ == '__main__':
  jax.config.update('jax_default_matmul_precision', 'highest')
  main(sys.argv[1:])
