"""MosaicBERT at the quick start's size, data and budget, 30% of the bytes masked.  Architecture: arXiv 2312.17482.

python -m ssmlab.launch experiments/mosaicbert_small.py

A document is 128 bytes of a file; two share a row.  NUL, which opens a document, is [CLS]; id 256 is [MASK].
"""

import dataclasses

from experiments.quickstart import config as base
from ssmlab.data import Bytes, Documents, StandardLibrary
from ssmlab.eval import HeldOut, Padding
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding, MaskedHead
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.attention import Attention
from ssmlab.models.encoder import Encoder, padded_vocab
from ssmlab.tasks import MaskedLM
from ssmlab.train import AdamW

MASK = 256


def config():
  mixer = Attention(heads=5, head_dim=32, bias=True, output_bias=True, rotary_fraction=0.0, causal=False, alibi=True, start=0.02, depth_scaled=False)
  norm = LayerNorm(1e-12)
  return dataclasses.replace(
      base(),
      model=Encoder(vocab=padded_vocab(MASK + 1), width=160, depth=4, pattern=(mixer,), norm=norm, embedding=Embedding(norm=norm),
                    channel=GatedMLP(540, 'gelu', output_bias=True, start=0.02, depth_scaled=False), head=MaskedHead(norm), remat='none'),
      data=Documents(StandardLibrary(valid_share=0.02, test_share=0.02), Bytes(), length=256, batch_size=8, most=128),
      task=MaskedLM(mask=MASK, ratio=0.3),
      optim=AdamW(peak_lr=2e-3, warmup_steps=30, decay='linear', end_ratio=0.02, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.02),
      evals=(('valid', HeldOut(every=250, max_tokens=32768)), ('padding', Padding())))
