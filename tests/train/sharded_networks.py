"""Run by test_sharding.py in a process with eight virtual devices: training steps of encoders and of CALM's two stages, on a mesh against one device.

Prints 'NAME gathers loss-difference gradient-difference' for every network.
"""

import jax
import numpy as np

from ssmlab.layers.channel import MLP, GatedMLP
from ssmlab.layers.embedding import Embedding, MaskedHead
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.rwkv7 import RWKV7
from ssmlab.models import CALM, Autoencoder, Encoder
from ssmlab.models.calm import EnergyHead
from ssmlab.tasks import Autoencode, MaskedLM, NextVector
from tests.train.sharded import compare

ROWS, TIME, VOCAB = 8, 16, 64
SLIM = LayerNorm(1e-5, bias=False)
WHOLE = Attention(4, 4, causal=False)
AUTOENCODER = Autoencoder(VOCAB, chunk=2, width=16, hidden=32, latent=8)
NETWORKS = dict(
    bert=(Encoder(VOCAB, 16, (Attention(4, 4, bias=True, output_bias=True, rotary_fraction=0.0, causal=False, alibi=True),), 2, MLP(32),
                  embedding=Embedding(norm=LayerNorm(1e-12), positions=TIME, offset=2, types=2), embedding_dropout=0.1, mixer_dropout=0.1), MaskedLM(mask=1)),
    modern=(Encoder(VOCAB, 16, (WHOLE, Attention(4, 4, causal=False, window=3)), 4, GatedMLP(32, 'gelu'), SLIM, post_norm=False, first_norm=False,
                    embedding=Embedding(norm=SLIM), head=MaskedHead(SLIM, dense_bias=False)), MaskedLM(mask=1)),
    autoencoder=(AUTOENCODER, Autoencode()),
    calm=(CALM(VOCAB, 16, (RWKV7(head_dim=8), Attention(2, 8)), 4, GatedMLP(32), autoencoder=AUTOENCODER, head=EnergyHead(blocks=1, noise=6, samples=4, targets=6)),
          NextVector()))


def main():
  random = np.random.default_rng(0)
  tokens, ids = random.integers(0, VOCAB, (ROWS, TIME), dtype=np.int32), np.sort(random.integers(0, 4, (ROWS, TIME)), axis=1).astype(np.int32)
  batch = dict(tokens=tokens, targets=np.where(ids == 0, -1, tokens), segment_ids=ids, words=np.tile(np.arange(TIME, dtype=np.int32), (ROWS, 1)))
  for name, (model, task) in NETWORKS.items():
    print(name, *compare(model, task, batch, floor=1e-3), flush=True)


if __name__ == '__main__':
  jax.config.update('jax_default_matmul_precision', 'highest')
  main()
