"""Mamba, 130M parameters, 300B tokens of the Pile.  Paper: Mamba, arXiv 2312.00752, table 3 and appendix E.2.

Not run here; the paper's scores stand in that table.  The Pile as text in data/pile, GPT-NeoX-20B's tokenizer.json as
data/20B_tokenizer.json.

python -m ssmlab.launch experiments/mamba1_130m.py --workdir DIR

The peak rate is five times GPT-3's at this size, the warm-up a tenth of the run (the authors, state-spaces/mamba issues 144 and 184).
They kept the residual stream in float32; here it is bfloat16 as all activations.  Their rows tile one stream of ids; here documents are
packed and do not see each other.
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.mamba import mamba1
from ssmlab.train import AdamW, Experiment, Train

LENGTH, ROWS = 2048, 256                                           # half a million tokens a step
STEPS = 300_000_000_000 // (LENGTH * ROWS)


def config():
  return Experiment(
      model=dataclasses.replace(mamba1('130M'), activations='bfloat16'),
      data=Data(Text('data/pile', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/20B_tokenizer.json'), length=LENGTH, batch_size=ROWS),
      optim=AdamW(peak_lr=5 * 6e-4, warmup_steps=STEPS // 10, decay='cosine', end_ratio=1e-5 / (5 * 6e-4), b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0),
      train=Train(steps=STEPS, log_every=100, checkpoint_every=5000),
      evals=(('valid', HeldOut(every=10000, max_tokens=2**20)),))
