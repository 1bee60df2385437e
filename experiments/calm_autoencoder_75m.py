"""CALM's autoencoder, "75M", 15.7B tokens of the Pile: 4 tokens to a vector of 128 entries.  Paper: CALM, arXiv 2510.27688, section 2.

Published: more than 99.9% of tokens restored while the vector is drawn from the posterior, whose standard deviations converge to about 0.3.
8 GPUs.  Shards 00 and 01 of the uncopyrighted Pile as text in data/pile_autoencoder, Llama 3's tokenizer.json as data/llama3_tokenizer.json.

python -m ssmlab.launch experiments/calm_autoencoder_75m.py --workdir runs/calm_autoencoder_75m

The paper warms the rate up over 2000 steps; the authors' script asks for 1000, of which its constant schedule makes none.
"""

import dataclasses

from ssmlab.data import Chunks, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.calm import VOCAB, autoencoder
from ssmlab.tasks import Autoencode
from ssmlab.train import AdamW, Experiment, Train


def config():
  return Experiment(
      model=dataclasses.replace(autoencoder(4), activations='bfloat16'),
      data=Chunks(Text('data/pile_autoencoder', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/llama3_tokenizer.json', end_token='<|end_of_text|>'),
                  length=2048, batch_size=256, chunk=4, padding=VOCAB - 1),
      task=Autoencode(),
      optim=AdamW(peak_lr=3e-4, warmup_steps=1000, decay='constant', b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0),
      train=Train(steps=30000, accumulate=4, log_every=50, checkpoint_every=2000),
      evals=(('valid', HeldOut(every=2000, max_tokens=2**20)),))
