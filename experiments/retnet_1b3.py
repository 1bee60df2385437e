"""RetNet, 1.3B parameters, 100B tokens of the Pile, C4 and The Stack.  Paper: Retentive Network, arXiv 2307.08621, section 3.1 and table 2.

Published: perplexity falls below the Transformer's from about 2B parameters on (figure 5).  512 AMD MI200.  The three corpora as text in
data/pile_c4_stack, GPT-2's tokenizer.json as data/gpt2_tokenizer.json.

python -m ssmlab.launch experiments/retnet_1b3.py --workdir DIR

The paper does not say its tokenizer, its mixture, nor Adam's eps.  Its text gives a weight decay of 0.05 (a table of the appendix 0.01), and
DeepNet's start; here the start is torchscale's.  It drops out a tenth, here nothing is dropped.
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.retnet import retnet
from ssmlab.train import AdamW, Experiment, Train


def config():
  return Experiment(
      model=dataclasses.replace(retnet('1.3B'), activations='bfloat16'),
      data=Data(Text('data/pile_c4_stack', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/gpt2_tokenizer.json'),
                length=2048, batch_size=2048),
      optim=AdamW(peak_lr=6e-4, warmup_steps=375, decay='linear', end_ratio=0.0, b1=0.9, b2=0.98, weight_decay=0.05, clip=2.0),
      train=Train(steps=25000, log_every=20, checkpoint_every=500),
      evals=(('valid', HeldOut(every=2500, max_tokens=2**20)),))
