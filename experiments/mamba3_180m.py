"""Mamba-3 (SISO), 180M parameters, 100B tokens of FineWeb-Edu.  Paper: Mamba-3, arXiv 2603.15569, section 4.1 and appendix D.

Published (table 3): FineWeb-Edu perplexity 16.59, LAMBADA perplexity 37.7, average accuracy 43.4.  Not run here.  FineWeb-Edu as text in
data/fineweb_edu, Llama 3.1's tokenizer.json as data/llama3.1_tokenizer.json.

python -m ssmlab.launch experiments/mamba3_180m.py --workdir DIR

Data, tokens, length and bfloat16 are the paper's; for the rest it points to Mamba-2's appendix D.2 (arXiv 2405.21060): half a million tokens
a step, five times GPT-3's rate, cosine to 1e-5, weight decay, betas and clipping.  Neither gives the warm-up: a tenth of the run, as for
Mamba.  The count is 186M.  Documents are packed and do not see each other.
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.mamba import mamba3
from ssmlab.train import AdamW, Experiment, Train

LENGTH, ROWS = 2048, 256                                           # half a million tokens a step
STEPS = 100_000_000_000 // (LENGTH * ROWS)
RATE = 5 * 6e-4


def config():
  return Experiment(
      model=dataclasses.replace(mamba3('180M'), activations='bfloat16'),
      data=Data(Text('data/fineweb_edu', valid_share=0.0005, test_share=0.0005),
                HFTokenizer('data/llama3.1_tokenizer.json', end_token='<|end_of_text|>'), length=LENGTH, batch_size=ROWS),
      optim=AdamW(peak_lr=RATE, warmup_steps=STEPS // 10, decay='cosine', end_ratio=1e-5 / RATE, b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0),
      train=Train(steps=STEPS, log_every=100, checkpoint_every=5000),
      evals=(('valid', HeldOut(every=10000, max_tokens=2**20)),))
