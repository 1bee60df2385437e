"""Run by test_causal_convolution.py in a process with eight virtual devices: the operator on meshes against one device.

Prints one JSON object per case: the differences, relative to the largest value, and the collectives of forward and backward pass.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.core import mesh as meshes
from ssmlab.ops.causal_convolution import causal_convolution
from ssmlab.ops.causal_convolution.streaming import init_stream, stream

MESHES = {'batch and channels': dict(data=2, fsdp=2, tensor=2), 'sequence': dict(data=2, sequence=4), 'all': dict(fsdp=2, tensor=2, sequence=2)}


def both(segment_ids):
  def value(u, h, weight):
    y = causal_convolution(u, h, segment_ids=segment_ids)
    return jnp.sum(y * weight), y
  return jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))


def collectives(compiled) -> dict[str, list[int]]:
  """Name -> elements of each result."""
  found = re.findall(r'= (\S+\[[\d,]*\]\S*|\(.*?\)) (all-gather|all-to-all|all-reduce|collective-permute)(?:-start)?\(', compiled.as_text())
  sizes = {}
  for shape, name in found:
    sizes.setdefault(name, []).append(sum(int(np.prod([int(n) for n in dims.split(',') if n])) for dims in re.findall(r'\[([\d,]*)\]', shape)))
  return sizes


def case(name, config, channels, shared, packed, batch=8, time=64):
  random = np.random.default_rng(0)
  u, weight = (jnp.asarray(random.normal(size=(batch, time, channels, *shared)), jnp.float32) for _ in range(2))
  h = jnp.asarray(random.normal(size=(time, channels)), jnp.float32)
  ids = jnp.asarray(np.sort(random.integers(0, 4, (batch, time)), axis=1), jnp.int32) if packed else None
  one = jax.tree.leaves(both(ids)(u, h, weight))
  mesh = meshes.make(meshes.MeshConfig(**config))
  layout = jax.sharding.NamedSharding(mesh, meshes.spec(u.shape, ('batch', 'time', 'inner', *(None,) * len(shared)), dict(mesh.shape)))
  filters = jax.sharding.NamedSharding(mesh, meshes.spec(h.shape, (None, 'inner'), dict(mesh.shape)))
  with meshes.use(mesh):
    arguments = jax.device_put(u, layout), jax.device_put(h, filters), jax.device_put(weight, layout)
    compiled = both(ids).lower(*arguments).compile()
    many = jax.tree.leaves(compiled(*arguments))
  differences = [float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max()) for a, b in zip(many, one)]
  print(json.dumps(dict(name=name, differences=differences, collectives=collectives(compiled), elements=int(u.size))), flush=True)


def streamed(name, config):
  """Prefill and a few tokens."""
  random = np.random.default_rng(1)
  u, h = jnp.asarray(random.normal(size=(8, 50, 4)), jnp.float32), jnp.asarray(random.normal(size=(64, 4)), jnp.float32)

  @jax.jit
  def run(u, h):
    y, state = stream(init_stream(8, 64, (4,)), u[:, :30], h)
    outputs = [y]
    for t in range(30, 50):
      y, state = stream(state, u[:, t:t + 1], h)
      outputs.append(y)
    return jnp.concatenate(outputs, axis=1)
  with meshes.use(meshes.make(meshes.MeshConfig(**config))):
    many = np.asarray(run(u, h))
  one = np.asarray(causal_convolution(u, h))
  print(json.dumps(dict(name=name, differences=[float(np.abs(many - one).max() / np.abs(one).max())])), flush=True)


if __name__ == '__main__':
  for name, config in MESHES.items():
    for packed in (False, True):
      case(f'{name}{", packed" * packed}', config, 8, (), packed)
  case('sequence, channels that do not divide', MESHES['sequence'], 3, (2,), False)
  case('nothing divides', MESHES['all'], 3, (), False, batch=3, time=63)
  streamed('stream', MESHES['all'])
