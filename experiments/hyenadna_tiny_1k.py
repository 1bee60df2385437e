"""HyenaDNA, 0.44M parameters, the human genome in sequences of 1024 nucleotides.  Paper: HyenaDNA, arXiv 2306.15794.

The README's first pretraining command (2 layers of 128) on HazyResearch/hyena-dna's configs/experiment/hg38/hg38_hyena.yaml.  The genome as text
in data/hg38, one character a token: a tokenizer.json of HyenaDNA's 12 characters as data/hyenadna_tokenizer.json.  Not run here.

python -m ssmlab.launch experiments/hyenadna_tiny_1k.py --workdir DIR

The config says 100 epochs of sampled intervals, of which the .bed file (Basenji's) has 34,021 to train on; the steps here are those.  The authors drop out a
tenth of the embeddings and leave Adam's b2 at 0.999.
"""

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.hyena import hyenadna
from ssmlab.train import AdamW, Experiment, Train

ROWS = 256
STEPS = 100 * -(-34_021 // ROWS)


def config():
  return Experiment(
      model=hyenadna('tiny-1k'),
      data=Data(Text('data/hg38', valid_share=0.01, test_share=0.01), HFTokenizer('data/hyenadna_tokenizer.json', end_token='[SEP]'),
                length=1024, batch_size=ROWS),
      optim=AdamW(peak_lr=6e-4, warmup_steps=STEPS // 100, decay='cosine', end_ratio=0.1, b1=0.9, b2=0.999, weight_decay=0.1, clip=1.0),
      train=Train(steps=STEPS, log_every=20, checkpoint_every=1000),
      evals=(('valid', HeldOut(every=1000, max_tokens=2**20)),))
