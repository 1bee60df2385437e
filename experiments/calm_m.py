"""CALM-M, 371M parameters and an autoencoder of 75M, 520B tokens of the Pile, 4 at a time.  Paper: CALM, arXiv 2510.27688, table 1.

Published: BrierLM 5.72 on WikiText-103's test split (Transformer-S, 281M: 6.05); 3.7e20 FLOPs of training, 2.9e8 per generated token at temperature 1.
8 GPUs.  Shards 02 to 29 of the uncopyrighted Pile as text in data/pile, Llama 3's tokenizer.json as data/llama3_tokenizer.json.

python -m ssmlab.launch experiments/calm_autoencoder_75m.py --workdir runs/calm_autoencoder_75m
python -m ssmlab.launch experiments/calm_m.py --workdir DIR

Here documents do not see each other; the authors' rows run on without a border.  Their script's constant schedule skips the paper's warm-up.
"""

import dataclasses

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.calm import calm
from ssmlab.tasks import NextVector
from ssmlab.train import AdamW, Experiment, Train


def config():
  return Experiment(
      model=dataclasses.replace(calm('M'), activations='bfloat16'),
      data=Data(Text('data/pile', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/llama3_tokenizer.json', end_token='<|begin_of_text|>'),
                length=8192, batch_size=256),
      task=NextVector(),
      optim=AdamW(peak_lr=3e-4, warmup_steps=2000, decay='constant', b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0),
      train=Train(steps=250_000, accumulate=8, log_every=50, checkpoint_every=5000, start='runs/calm_autoencoder_75m', start_at='autoencoder'),
      evals=(('valid', HeldOut(every=5000, max_tokens=2**20)),))
