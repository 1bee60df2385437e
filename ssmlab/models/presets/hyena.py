"""Hyena, hybrid H3, StripedHyena and HyenaDNA at the published sizes.

Hyena: arXiv 2302.10866, table A.4 (layers, widths, filters) and section A.2 (the Pile's models are of order 2, WikiText-103's of order 3).
H3: arXiv 2212.14052; layers of attention as in the released checkpoints (HazyResearch/H3, examples/README), without rotation.
StripedHyena: togethercomputer/stripedhyena, configs/7b-sh-32k-v1.yml; its RMSNorm adds eps outside the root, ours inside.
HyenaDNA: arXiv 2306.15794; config.json of huggingface.co/LongSafari/hyenadna-medium-160k-seqlen-hf, -medium-450k-seqlen-hf and
-large-1m-seqlen-hf, and the README's command for 1k.  Not established: the width of small-32k, which is therefore not here.

Vocabularies are padded to a multiple of 8, as in the authors' code: GPT-2's 50257 ids to 50264, HyenaDNA's 12 to 16.
"""

from ssmlab.layers.channel import MLP, GatedMLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.filters import ImplicitFilter
from ssmlab.layers.norms import LayerNorm, RMSNorm
from ssmlab.mixers import Mixer
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.h3 import H3
from ssmlab.mixers.hyena import Hyena
from ssmlab.mixers.striped_hyena import StripedHyena
from ssmlab.models.lm import LM
from ssmlab.models.presets import sizes_of

GPT2_VOCAB = 50264

# Layers, width, width of the MLP.
SIZES = {'125M': (12, 768, 3072), '125M-slim': (18, 768, 1536), '153M': (18, 864, 1728), '355M': (36, 1024, 2048), '1.3B': (36, 2048, 4096)}

# Layers, width, attention heads, layers of attention.
SIZES_H3 = {'125M': (12, 768, 12, (6,)), '355M': (24, 1024, 16, (8, 16)), '1.3B': (24, 2048, 16, (8, 16)), '2.7B': (32, 2560, 20, (8, 16, 24))}

# Layers, width, longest sequence with its two special tokens.
SIZES_DNA = {'tiny-1k': (2, 128, 1026), 'medium-160k': (8, 256, 160_002), 'medium-450k': (8, 256, 450_002), 'large-1m': (8, 256, 1_000_002)}


def hyena(size: str, order: int = 2, l_max: int = 2048) -> LM:
  """Hyena: '125M', '125M-slim', '153M', '355M' or '1.3B'.  l_max: longest document, 2048 in the Pile's models."""
  depth, width, hidden = sizes_of('hyena', SIZES, size)
  return _safari(GPT2_VOCAB, depth, width, hidden, (Hyena(ImplicitFilter(l_max), order=order),))


def h3(size: str, attention_at: tuple[int, ...] | None = None) -> LM:
  """H3 with a few layers of attention: '125M', '355M', '1.3B' or '2.7B'.  attention_at: which, from 0; None: those of the released checkpoints."""
  depth, width, heads, released = sizes_of('h3', SIZES_H3, size)
  at = released if attention_at is None else attention_at
  attention = Attention(heads=heads, head_dim=width // heads, bias=True, output_bias=True, rotary_fraction=0.0, start=0.02)
  return _safari(GPT2_VOCAB, depth, width, 4 * width, tuple(attention if layer in at else H3() for layer in range(depth)))


def hyenadna(size: str) -> LM:
  """HyenaDNA: 'tiny-1k', 'medium-160k', 'medium-450k' or 'large-1m'.  Features of positions are constants."""
  depth, width, l_max = sizes_of('hyenadna', SIZES_DNA, size)
  return _safari(16, depth, width, 4 * width, (Hyena(ImplicitFilter(l_max, emb_dim=5, frequency=10.0, position_rate=0.0)),))


def striped_hyena(size: str) -> LM:
  """StripedHyena: '7B'; gated convolution and attention take turns."""
  depth, width, hidden = sizes_of('striped_hyena', {'7B': (32, 4096, 14336)}, size)
  attention = Attention(heads=32, head_dim=width // 32, kv_heads=8, theta=500_000.0)
  return LM(vocab=32000, width=width, depth=depth, pattern=(StripedHyena(heads=32), attention), channel=GatedMLP(hidden), norm=RMSNorm(1e-5),
            embedding=Embedding(), head=Head())


def _safari(vocab: int, depth: int, width: int, hidden: int, pattern: tuple[Mixer, ...]) -> LM:
  return LM(vocab=vocab, width=width, depth=depth, pattern=pattern, channel=MLP(hidden, 'gelu_tanh', start=0.02), norm=LayerNorm(),
            embedding=Embedding(size=0.02), head=Head(tied=True))
