"""A Transformer of 10 narrow layers, 1.16M parameters, bytes of English novels: what experiments/pangu_pi_novels.py is compared with.

python -m ssmlab.launch experiments/transformer_novels.py --sweep
"""

import dataclasses

from experiments.novels_rwkv7_tiny import config as base
from ssmlab.eval import HeldOut
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.attention import Attention
from ssmlab.models import LM
from ssmlab.train import AdamW


def config():
  novels = base()
  return dataclasses.replace(
      novels, model=LM(vocab=256, width=96, pattern=(Attention(heads=3, head_dim=32),), depth=10, channel=GatedMLP(hidden=256)),
      optim=AdamW(peak_lr=2e-3, warmup_steps=50, b1=0.9, b2=0.95, end_ratio=0.1), evals=(('valid', HeldOut(every=250, max_tokens=32768, final_max_tokens=262144)),))


def sweep():
  return [{'train.seed': seed} for seed in range(3)]
