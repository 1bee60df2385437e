"""MosaicBERT base fine-tuned on CoLA.  Paper: MosaicBERT, arXiv 2312.17482; recipe: mosaicml/examples, examples/benchmarks/bert,
src/glue/finetuning_jobs.py and yamls/finetuning/glue.

Published (mean of four seeds of each of five pre-trained models): Matthews 55.11.  GLUE's CoLA in data/CoLA, bert-base-uncased's
tokenizer.json as data/bert-base-uncased.json; the pre-trained run is named on the command line, and sweep() draws four seeds.

python -m ssmlab.launch experiments/mosaicbert_cola.py --workdir DIR train.start=WORKDIR_OF_MOSAICBERT_BASE

Composer's decoupled weight decay of 5e-6 is optax's of 5e-6 / 5e-5 = 0.1.
"""

import dataclasses

from ssmlab.data import HFTokenizer, Sentences, glue
from ssmlab.eval import HeldOut, Scores
from ssmlab.layers.embedding import Classifier
from ssmlab.models.presets.bert import mosaicbert
from ssmlab.tasks import Classify
from ssmlab.train import AdamW, Experiment, Train

EXAMPLES, BATCH, EPOCHS = 8551, 32, 10
STEPS = EXAMPLES * EPOCHS // BATCH


def config():
  return Experiment(
      model=dataclasses.replace(mosaicbert('base'), head=None, classifier=Classifier(2, dropout=0.1), activations='bfloat16'),
      data=Sentences(glue('cola', 'data/CoLA/train.tsv', 'data/CoLA/dev.tsv'), HFTokenizer('data/bert-base-uncased.json', end_token='[CLS]'), length=256,
                     batch_size=BATCH, separator=102),
      task=Classify(),
      optim=AdamW(peak_lr=5e-5, warmup_steps=STEPS * 6 // 100, decay='linear', end_ratio=0.0, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.1, clip=0.0),
      train=Train(steps=STEPS, seed=19, log_every=50, checkpoint_every=0),
      evals=(('valid', HeldOut(every=500)), ('score', Scores(('matthews', 'accuracy'), every=500))))


def sweep():
  return [{'train.seed': seed, 'data.seed': seed} for seed in (19, 8364, 717, 10536)]
