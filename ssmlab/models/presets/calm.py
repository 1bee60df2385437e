"""CALM at the published sizes.  Continuous Autoregressive Language Models, arXiv 2510.27688, table 1; shaochenze/calm, train/*.sh.

Heads: 16 in the script of M and in the paper's ablations at S; of L and XL neither paper nor code says a number, 16 here as well.
Tables have one row more than Llama 3's tokenizer has ids: [PAD], the last.
"""

from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.attention import Attention
from ssmlab.models.calm import CALM, Autoencoder, EnergyHead
from ssmlab.models.presets import sizes_of

VOCAB = 128257
CHUNKS = (1, 2, 4, 8)

# Layers, width, width of the MLP, heads, blocks of the energy head.
SIZES = {'S': (12, 768, 2048, 16, 3), 'M': (16, 1024, 2752, 16, 4), 'L': (16, 1536, 4096, 16, 4), 'XL': (16, 2560, 6880, 16, 4)}


def autoencoder(chunk: int = 4) -> Autoencoder:
  """Chunks of 1, 2, 4 or 8 tokens to vectors of 32 times as many entries; 4 is the published "75M"."""
  if chunk not in CHUNKS:
    raise ValueError(f'autoencoder: chunk={chunk} is not one of {", ".join(map(str, CHUNKS))}')
  return Autoencoder(vocab=VOCAB, chunk=chunk, width=512, hidden=1280, latent=32 * chunk)


def calm(size: str, chunk: int = 4) -> CALM:
  """CALM: 'S', 'M', 'L' or 'XL'; its number of parameters is without the autoencoder's."""
  depth, width, hidden, heads, blocks = sizes_of('calm', SIZES, size)
  mixer = Attention(heads=heads, head_dim=width // heads, start=0.02, depth_scaled=False)
  return CALM(vocab=VOCAB, width=width, depth=depth, pattern=(mixer,), channel=GatedMLP(hidden, start=0.02, depth_scaled=False), norm=RMSNorm(1e-6),
              autoencoder=autoencoder(chunk), head=EnergyHead(blocks), padding=VOCAB - 1)
