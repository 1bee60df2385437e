"""ModernBERT at the quick start's size, data and budget, 30% of the bytes masked.  Architecture: arXiv 2412.13663.

python -m ssmlab.launch experiments/modernbert_small.py

Every third layer sees its whole document, the others 16 bytes to either side; documents, [CLS] and [MASK] as in
experiments/mosaicbert_small.py.
"""

import dataclasses

from experiments.mosaicbert_small import config as base
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding, MaskedHead
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.attention import Attention


def config():
  start, norm = base(), LayerNorm(1e-5, bias=False)
  whole = Attention(heads=5, head_dim=32, causal=False, theta=160000.0, start=0.02)
  local = dataclasses.replace(whole, theta=10000.0, window=17)
  model = dataclasses.replace(start.model, pattern=(whole, local, local), channel=GatedMLP(540, 'gelu', start=0.02), norm=norm, post_norm=False,
                              first_norm=False, embedding=Embedding(norm=norm), head=MaskedHead(norm, dense_bias=False))
  return dataclasses.replace(start, model=model)
