"""Run by test_sharding_encoder.py in a process with eight virtual devices: an encoder's training step on a mesh against one device.

Prints 'NAME loss-difference gradient-difference' for every encoder.
"""

import jax
import numpy as np

from ssmlab.core import mesh as meshes
from ssmlab.core.params import init
from ssmlab.eval.heldout import place
from ssmlab.layers.channel import MLP, GatedMLP
from ssmlab.layers.embedding import Embedding, MaskedHead
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.attention import Attention
from ssmlab.models import Encoder
from ssmlab.tasks import MaskedLM

ROWS, TIME, VOCAB = 8, 16, 64
SLIM = LayerNorm(1e-5, bias=False)
WHOLE = Attention(4, 4, causal=False)
MODELS = dict(
    bert=Encoder(VOCAB, 16, (Attention(4, 4, bias=True, output_bias=True, rotary_fraction=0.0, causal=False, alibi=True),), 2, MLP(32),
                 embedding=Embedding(norm=LayerNorm(1e-12), positions=TIME, offset=2, types=2), embedding_dropout=0.1, mixer_dropout=0.1),
    modern=Encoder(VOCAB, 16, (WHOLE, Attention(4, 4, causal=False, window=3)), 4, GatedMLP(32, 'gelu'), SLIM, post_norm=False, first_norm=False,
                   embedding=Embedding(norm=SLIM), head=MaskedHead(SLIM, dense_bias=False)))


def gradients(model, params, batch, mesh):
  """(loss, gradient) of the batch on a mesh, as numpy."""
  shardings = meshes.shardings(model.params(), mesh)
  params = jax.tree.map(jax.device_put, params, shardings)
  with meshes.use(mesh):
    loss = lambda p, b: MaskedLM(mask=1).loss(model, p, b, jax.random.key(0))[0] / b['targets'].size
    return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss), out_shardings=(meshes.replicated(mesh), shardings))(params, place(batch, mesh)))


def main():
  random = np.random.default_rng(0)
  tokens, ids = random.integers(0, VOCAB, (ROWS, TIME), dtype=np.int32), np.sort(random.integers(0, 4, (ROWS, TIME)), axis=1).astype(np.int32)
  batch = dict(tokens=tokens, targets=np.where(ids == 0, -1, tokens), segment_ids=ids, words=np.tile(np.arange(TIME, dtype=np.int32), (ROWS, 1)))
  for name, model in MODELS.items():
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), init(jax.random.key(0), model.params()))
    one = gradients(model, params, batch, meshes.make(devices=jax.devices()[:1]))
    many = gradients(model, params, batch, meshes.make(meshes.MeshConfig(data=2, fsdp=2, tensor=2)))
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(one[1]))      # a key bias has none but rounding
    relative = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3 * largest)), many, one)
    print(name, relative[0], max(jax.tree.leaves(relative[1])), flush=True)


if __name__ == '__main__':
  jax.config.update('jax_default_matmul_precision', 'highest')
  main()
