"""Hyena of order 2, 153M parameters, 15B tokens of the Pile.  Paper: Hyena Hierarchy, arXiv 2302.10866, table 4.4 and appendix A.3.

Published: perplexity 11.1 after 15B tokens (13.3 after 5B, 11.8 after 10B, each from its own run), where GPT of 125M has 11.2; 9.8 after 130B.
The Pile as text in data/pile, GPT-2's tokenizer.json as data/gpt2_tokenizer.json.  Not run here.

python -m ssmlab.launch experiments/hyena_pile_153m.py --workdir DIR

10 and 20 thousand steps give the paper's other points; its schedule is as long as the run.  The released config drops out a tenth of the
embeddings (the paper's table nothing) and leaves Adam's b2 at 0.999; here nothing is dropped and b2 is the paper's.  Its warm-up starts at 1e-6,
and it decays every parameter but the filters'.  It reads one stream of ids; here documents are packed and do not see each other.
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.hyena import hyena
from ssmlab.train import AdamW, Experiment, Train

STEPS = 30_000


def config():
  return Experiment(
      model=dataclasses.replace(hyena('153M'), activations='bfloat16'),
      data=Data(Text('data/pile', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/gpt2_tokenizer.json'), length=2048, batch_size=256),
      optim=AdamW(peak_lr=6e-4, warmup_steps=STEPS // 100, decay='cosine', end_ratio=0.1, b1=0.9, b2=0.98, weight_decay=0.1, clip=1.0),
      train=Train(steps=STEPS, log_every=20, checkpoint_every=1000),
      evals=(('valid', HeldOut(every=2500, max_tokens=2**20)),))
