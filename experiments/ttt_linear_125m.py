"""TTT-Linear, 125M by GPT-3's names (110M counted), 2.5B tokens of the Pile.  Paper: Learning to (Learn at Test Time), arXiv 2407.04620,
section 3 and appendix C.

Not run here; the paper gives perplexities as curves.  The Pile as text in data/pile, Llama 2's tokenizer.json as data/llama2_tokenizer.json.

python -m ssmlab.launch experiments/ttt_linear_125m.py --workdir DIR

Rate, steps, rows, length, weight decay and float32 are those of test-time-training/ttt-lm-jax, scripts/ttt_linear/125m.sh; the betas and the
clipping are the defaults of ttt/infra/optimizers.py.  Their convolution before each block is not here, and they decay every parameter.
Their rows tile one stream of ids; here documents are packed and do not see each other.
"""

from ssmlab.data import Data, HFTokenizer, Text
from ssmlab.eval import HeldOut
from ssmlab.models.presets.ttt import ttt_linear
from ssmlab.train import AdamW, Experiment, Train

LENGTH, ROWS = 2048, 256                                           # half a million tokens a step
RATE, STEPS = 3e-3, 4800


def config():
  return Experiment(
      model=ttt_linear('125M'),
      data=Data(Text('data/pile', valid_share=0.0005, test_share=0.0005), HFTokenizer('data/llama2_tokenizer.json', end_token='</s>'),
                length=LENGTH, batch_size=ROWS),
      optim=AdamW(peak_lr=RATE, warmup_steps=STEPS // 10, decay='cosine', end_ratio=1e-5 / RATE, b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0),
      train=Train(steps=STEPS, log_every=20, checkpoint_every=1000),
      evals=(('valid', HeldOut(every=1000, max_tokens=2**20)),))
