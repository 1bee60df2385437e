"""GPT-2's architecture at the quick start's size, data and budget.  Paper: Language Models are Unsupervised Multitask Learners, 2019.

python -m ssmlab.launch experiments/gpt2_small.py
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import MLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.attention import Attention
from ssmlab.models import LM


def config():
  start = base()
  mixer = Attention(heads=5, head_dim=32, bias=True, output_bias=True, rotary_fraction=0.0, start=0.02)
  return override(start, 'model', LM(
      vocab=256, width=160, pattern=(mixer,), depth=4, channel=MLP(810, 'gelu_tanh', start=0.02), norm=LayerNorm(),
      embedding=Embedding(positions=2 * start.data.length), head=Head(tied=True), remat='none'))
