"""What CALM costs: as its paper counts, and with everything that runs.  arXiv 2510.27688, table 1.

The paper's "44% fewer training FLOPs, 34% fewer in inference" compares CALM-M with a Transformer that is better at language (BrierLM 6.05 against
5.72), and at temperature 1 only: sampling colder draws many vectors for one chunk, and each of them goes through head and decoder.
"""

from ssmlab.models.calm.vector_lm import CALM
from ssmlab.models.lm import LM

POSITIONS = 2048            # the paper counts attention over so many positions, chunks for CALM and tokens for others
TOKENS = 5e11               # of the paper's training runs
AUTOENCODER_TOKENS = 30000 * 524288


def _backbone(model: LM, seen: float) -> float:
  """Forward FLOPs of the blocks per position, where attention sees `seen` others on average."""
  length = 2 * seen - 1                                      # a causal mixer's mean over so many positions is `seen`
  return sum(b.mixer.flops(model.width, length) + (b.channel.flops(model.width) if b.channel else 0) for b in model.blocks)


def _forward(model: LM, seen: float, heads: float) -> float:
  """Forward FLOPs per token of backbone, compression and head; heads: calls of the head's network for a chunk."""
  if not isinstance(model, CALM):
    return _backbone(model, seen) + 2 * model.vocab * model.width
  head = heads * model.head.call_flops(model.width, model.autoencoder.latent)
  return (_backbone(model, seen) + model.compression_flops() + head) / model.chunk


def paper_inference(model: LM) -> float:
  """FLOPs per generated token by the paper's count, for a CALM and for an autoregressive LM: attention over 2048 positions, all of them."""
  return _forward(model, POSITIONS, 1) + (model.autoencoder.decoder_flops() if isinstance(model, CALM) else 0)


def paper_training(model: LM, tokens: float = TOKENS) -> float:
  """FLOPs of a training run by the paper's count: for a CALM with the encoder's forward pass and the autoencoder's own training."""
  if not isinstance(model, CALM):
    return 3 * _forward(model, POSITIONS, 1) * tokens
  return training(model, tokens, POSITIONS, AUTOENCODER_TOKENS)


def training(model: CALM, tokens: float, seen: float, autoencoder_tokens: float = 0.0) -> float:
  """FLOPs of training on `tokens` tokens, where attention sees `seen` chunks on average: half of a row's, which the paper does not halve.

  The encoder runs forwards only.  autoencoder_tokens: of the first stage, if it is to be counted too.
  """
  autoencoder = model.autoencoder
  return (3 * _forward(model, seen, model.head.samples) + autoencoder.encoder_flops()) * tokens + 3 * autoencoder.flops(1) * autoencoder_tokens


def inference(model: CALM, length: int, draws: float = 1.0) -> float:
  """FLOPs per generated token at a context of `length` tokens and `draws` vectors for every chunk (200 in the authors' sampler below
  temperature 1): each draw costs all calls of the head and the whole decoder."""
  seen = (length // model.chunk + 1) / 2
  once = _forward(model, seen, 0)
  return once + draws * (model.head.flops(model.width, model.autoencoder.latent) / model.chunk + model.autoencoder.decoder_flops())


def report(model: CALM, length: int, tokens: float) -> list[tuple[str, float]]:
  """(what, FLOPs) of the second stage: both counts side by side, what its autoencoder took before, and what a cold sample costs."""
  return [('training, as the paper counts', training(model, tokens, POSITIONS)),
          ('training, causal attention at its length', training(model, tokens, (length // model.chunk + 1) / 2)),
          ('training of the autoencoder before, per token', 3 * model.autoencoder.flops(1)),
          ('inference per token, as the paper counts', paper_inference(model)),
          ('inference per token, temperature 1', inference(model, length)),
          ('inference per token, 200 draws a chunk', inference(model, length, 200))]
