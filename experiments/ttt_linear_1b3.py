"""TTT-Linear, 1.3B parameters, 26B tokens of the Pile.  Paper: Learning to (Learn at Test Time), arXiv 2407.04620, section 3 and appendix C.

Data, tokenizer, recipe and what differs are those of experiments/ttt_linear_125m.py; rate and steps are those of
test-time-training/ttt-lm-jax, scripts/ttt_linear/1.3b.sh.  Not run here.

python -m ssmlab.launch experiments/ttt_linear_1b3.py --workdir DIR
"""

import dataclasses

from experiments.ttt_linear_125m import config as base
from ssmlab.models.presets.ttt import ttt_linear

RATE, STEPS = 1e-3, 50_000


def config():
  small = base()
  return dataclasses.replace(
      small, model=ttt_linear('1.3B'), train=dataclasses.replace(small.train, steps=STEPS),
      optim=dataclasses.replace(small.optim, peak_lr=RATE, warmup_steps=STEPS // 10, end_ratio=1e-5 / RATE))
