"""xLSTM 7B, 2.3T tokens of DCLM and selected texts.  Paper: xLSTM 7B, arXiv 2503.13427; weights huggingface.co/NX-AI/xLSTM-7b.

Published by that card: MMLU 5-shot against tokens in a plot, BBH 0.381, MMLU-Pro 0.242, IFEval 0.244.  The authors took 128 H100s.  The
corpus as text in data/dclm, GPT-NeoX-20B's tokenizer.json as data/20B_tokenizer.json.

python -m ssmlab.launch experiments/xlstm_7b.py --workdir DIR

From NX-AI/xlstm-jax: rate, warm-up, length, rows and resets at document starts (configs/experiment/train_mLSTMv1_7B_dclm_cosine.yaml),
AdamW's numbers and the clipping (configs/optimizer/adamw.yaml), exponential decay to a tenth (configs/scheduler/exponential_decay.yaml); the
steps are in the name of the published checkpoint.  Left out: fewer rows in the first 2000 steps, a last linear cool-down to zero, and the
selected texts of the end.  The authors decay no embeddings; here the table is decayed.
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.xlstm import xlstm
from ssmlab.train import AdamW, Experiment, Train

LENGTH, ROWS, STEPS = 8192, 512, 550_000


def config():
  return Experiment(
      model=dataclasses.replace(xlstm('7B'), activations='bfloat16'),
      data=Data(Text('data/dclm', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/20B_tokenizer.json'), length=LENGTH, batch_size=ROWS),
      optim=AdamW(peak_lr=5e-4, warmup_steps=3000, decay='exponential', end_ratio=0.1, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip=0.5),
      train=Train(steps=STEPS, log_every=100, checkpoint_every=2000),
      evals=(('valid', HeldOut(every=10000, max_tokens=2**20)),))
