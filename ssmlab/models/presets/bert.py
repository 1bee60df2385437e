"""BERT, RoBERTa, MosaicBERT, ModernBERT and GPT-2 at their published sizes, which are the released config.json's.

BERT: arXiv 1810.04805, uncased.  RoBERTa: arXiv 1907.11692.  MosaicBERT: arXiv 2312.17482, mosaicml/examples, examples/benchmarks/bert; its
table is padded to a multiple of 64.  ModernBERT: arXiv 2412.13663.  GPT-2: Language Models are Unsupervised Multitask Learners, 2019.
Dropout is that of pre-training (a key turns it on); attention's weights, which BERT and RoBERTa drop too, are never dropped here.
"""

from ssmlab.layers.channel import MLP, GatedMLP
from ssmlab.layers.embedding import Embedding, Head, MaskedHead
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.attention import Attention
from ssmlab.models.encoder import Encoder, padded_vocab
from ssmlab.models.lm import LM
from ssmlab.models.presets import sizes_of

# Layers, width, heads, width of the MLP.
SIZES_BERT = {'base': (12, 768, 12, 3072), 'large': (24, 1024, 16, 4096)}
SIZES_MODERNBERT = {'base': (22, 768, 12, 1152), 'large': (28, 1024, 16, 2624)}
SIZES_GPT2 = {'124M': (12, 768, 12, 3072), '355M': (24, 1024, 16, 4096), '774M': (36, 1280, 20, 5120), '1.5B': (48, 1600, 25, 6400)}
STD = 0.02                 # of all first values; ModernBERT cuts its normal at two of them, which is not done here


def bert(size: str) -> Encoder:
  """BERT uncased: 'base' or 'large', with the head for masked words."""
  return _post_norm(sizes_of('bert', SIZES_BERT, size), 30522, Embedding(size=STD, norm=LayerNorm(1e-12), positions=512, types=2))


def roberta(size: str) -> Encoder:
  """RoBERTa: 'base' or 'large'."""
  return _post_norm(sizes_of('roberta', SIZES_BERT, size), 50265, Embedding(size=STD, norm=LayerNorm(1e-5), positions=512, offset=2, types=1))


def mosaicbert(size: str) -> Encoder:
  """MosaicBERT: 'base' or 'large', of any length."""
  depth, width, heads, hidden = sizes_of('mosaicbert', SIZES_BERT, size)
  mixer = Attention(heads=heads, head_dim=width // heads, bias=True, output_bias=True, rotary_fraction=0.0, causal=False, alibi=True, start=STD,
                    depth_scaled=False)
  norm = LayerNorm(1e-12)
  return Encoder(vocab=padded_vocab(30522), width=width, depth=depth, pattern=(mixer,), norm=norm, embedding=Embedding(size=STD, norm=norm, types=2),
                 channel=GatedMLP(hidden, 'gelu', output_bias=True, start=STD, depth_scaled=False, dropout=0.1), head=MaskedHead(norm, start=STD),
                 embedding_dropout=0.1, mixer_dropout=0.1)


def modernbert(size: str) -> Encoder:
  """ModernBERT: 'base' or 'large'; every third layer sees the whole document, the others 64 tokens to either side."""
  depth, width, heads, hidden = sizes_of('modernbert', SIZES_MODERNBERT, size)
  attention = dict(heads=heads, head_dim=width // heads, causal=False, start=STD)
  whole, local = Attention(theta=160000.0, **attention), Attention(window=65, **attention)
  norm = LayerNorm(1e-5, bias=False)
  return Encoder(vocab=50368, width=width, depth=depth, pattern=(whole, local, local), channel=GatedMLP(hidden, 'gelu', start=STD), norm=norm,
                 post_norm=False, first_norm=False, embedding=Embedding(size=STD, norm=norm), head=MaskedHead(norm, dense_bias=False, start=STD))


def gpt2(size: str) -> LM:
  """GPT-2: '124M', '355M', '774M' or '1.5B', without dropout."""
  depth, width, heads, hidden = sizes_of('gpt2', SIZES_GPT2, size)
  mixer = Attention(heads=heads, head_dim=width // heads, bias=True, output_bias=True, rotary_fraction=0.0, start=STD)
  return LM(vocab=50257, width=width, depth=depth, pattern=(mixer,), channel=MLP(hidden, 'gelu_tanh', start=STD), norm=LayerNorm(1e-5),
            embedding=Embedding(size=STD, positions=1024), head=Head(tied=True))


def _post_norm(sizes: tuple[int, int, int, int], vocab: int, embedding: Embedding) -> Encoder:
  depth, width, heads, hidden = sizes
  mixer = Attention(heads=heads, head_dim=width // heads, bias=True, output_bias=True, rotary_fraction=0.0, causal=False, start=STD, depth_scaled=False)
  return Encoder(vocab=vocab, width=width, depth=depth, pattern=(mixer,), channel=MLP(hidden, start=STD, depth_scaled=False), norm=embedding.norm,
                 embedding=embedding, head=MaskedHead(embedding.norm, start=STD), embedding_dropout=0.1, mixer_dropout=0.1, channel_dropout=0.1)
