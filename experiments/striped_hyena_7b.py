"""StripedHyena-7B, 7.65B parameters, sequences of 32k.  togethercomputer/stripedhyena, configs/7b-sh-32k-v1.yml; Together's blog, December 2023.

Published: beats Llama-2 13B's average on the OpenLLM tasks, with a cache less than half of grouped attention's; trains 30 %, 50 % and 100 % faster
than a Transformer at 32k, 64k and 128k.  Text in data/slimpajama, Mistral's tokenizer.json as data/mistral_tokenizer.json.  Not run here.

python -m ssmlab.launch experiments/striped_hyena_7b.py --workdir DIR

Only the architecture is published.  Corpus, batch, rate and steps were not: those here are chosen, Llama 2's recipe (arXiv 2307.09288, section
2.2: 4M tokens a step, 3e-4) over 1T tokens.  Nor is the start of the filters' bases: see ModalFilter.
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.hyena import striped_hyena
from ssmlab.train import AdamW, Experiment, Train

LENGTH, ROWS = 32768, 128
STEPS = 1_000_000_000_000 // (LENGTH * ROWS)


def config():
  return Experiment(
      model=dataclasses.replace(striped_hyena('7B'), activations='bfloat16'),
      data=Data(Text('data/slimpajama', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/mistral_tokenizer.json', end_token='</s>'),
                length=LENGTH, batch_size=ROWS),
      optim=AdamW(peak_lr=3e-4, warmup_steps=2000, decay='cosine', end_ratio=0.1, b1=0.9, b2=0.95, eps=1e-5, weight_decay=0.1, clip=1.0),
      train=Train(steps=STEPS, log_every=20, checkpoint_every=1000),
      evals=(('valid', HeldOut(every=5000, max_tokens=2**20)),))
