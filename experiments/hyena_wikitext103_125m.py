"""Hyena of order 3, 125M by its paper's names, WikiText-103.  Paper: Hyena Hierarchy, arXiv 2302.10866, table 4.3.

Published: test perplexity 18.6 (the slim model 18.5, a Transformer 18.6).  The text in data/wikitext103, GPT-2's tokenizer.json as
data/gpt2_tokenizer.json.  Not run here.

python -m ssmlab.launch experiments/hyena_wikitext103_125m.py --workdir DIR

The recipe is uncertain: no config was released, users got 20 to 22, and the authors call the corpus sensitive.  Layers and widths are table
A.4's, order 3 section A.2's (with it the count is 133M).  Batch, length, steps and rate are those that a maintainer of a sister project names
(state-spaces/mamba, issue 8); betas and decay are the Pile's.  He and the authors (HazyResearch/safari, issue 28) add dropout of 0.2 to 0.3 in the
residual branches, which the lab's language model does not have: expect more overfitting than theirs.
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.hyena import hyena
from ssmlab.train import AdamW, Experiment, Train

STEPS = 27_000                                                     # about 25 epochs


def config():
  return Experiment(
      model=dataclasses.replace(hyena('125M', order=3, l_max=1024), activations='bfloat16'),
      data=Data(Text('data/wikitext103/train', valid='data/wikitext103/valid', test='data/wikitext103/test'), HFTokenizer('data/gpt2_tokenizer.json'),
                length=1024, batch_size=128),
      optim=AdamW(peak_lr=1.5e-3, warmup_steps=STEPS // 100, decay='cosine', end_ratio=0.1, b1=0.9, b2=0.98, weight_decay=0.1, clip=1.0),
      train=Train(steps=STEPS, log_every=20, checkpoint_every=1000),
      evals=(('valid', HeldOut(every=1000, max_tokens=2**19)), ('test', HeldOut(split='test', max_tokens=2**19))))
