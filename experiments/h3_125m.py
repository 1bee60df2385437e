"""Hybrid H3, 125M by its paper's names, 50B tokens of OpenWebText.  Paper: Hungry Hungry Hippos, arXiv 2212.14052, table of OpenWebText.

Published: perplexity 19.6 with two layers of attention, 21.0 without, where a Transformer has 20.6.  The text in data/openwebtext, GPT-2's
tokenizer.json as data/gpt2_tokenizer.json.  Not run here.

python -m ssmlab.launch experiments/h3_125m.py --workdir DIR

Attention is in layers 1 and 8, as in HazyResearch/safari's config of this size; the released checkpoint, trained on the Pile, has it in layer 6.
Rate, weight decay, batch and length are that config's (for WikiText-103), steps make 50B tokens; warm-up and betas are GPT-2's usual ones, not
established for this run.  A and dt have the rest's rate, for the authors' min(1e-3, rate) is that.  Documents do not see each other here.
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.hyena import h3
from ssmlab.train import AdamW, Experiment, Train

LENGTH, ROWS = 1024, 512
STEPS = 50_000_000_000 // (LENGTH * ROWS)


def config():
  return Experiment(
      model=dataclasses.replace(h3('125M', attention_at=(1, 8)), activations='bfloat16'),
      data=Data(Text('data/openwebtext', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/gpt2_tokenizer.json'), length=LENGTH, batch_size=ROWS),
      optim=AdamW(peak_lr=6e-4, warmup_steps=STEPS // 100, decay='cosine', end_ratio=0.1, b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0),
      train=Train(steps=STEPS, log_every=20, checkpoint_every=1000),
      evals=(('valid', HeldOut(every=5000, max_tokens=2**20)),))
