"""CALM's two stages, arXiv 2510.27688: chunks of tokens to vectors and back, so that the vectors stand some noise (section 2); then the next
vector (section 3).  shaochenze/calm, models/modeling_autoencoder.py and modeling_energy.py.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.models.calm.autoencoder import floored_divergence
from ssmlab.tasks.next_token import cross_entropy


@dataclasses.dataclass(frozen=True)
class Autoencode:
  """K * mean over tokens of -log p(token | z) + kl_weight * mean over chunks of sum over entries of max(KL, kl_floor).

  z = mean + std * noise.  Training drops tokens and latent entries (Autoencoder.dropout); the labels stay whole.
  Held out: nothing is dropped; loss is the mean of -log p(token | z), z drawn from the posterior, accuracy that of the largest logit, and
  accuracy_at_S the same at z = mean + S * noise for every S of `sweep`: what the language model leans on.

  kl_weight, kl_floor: as above.  piece: chunks of each row whose logits are in memory at once; 0 chooses.
  """
  kl_weight: float = 1e-3
  kl_floor: float = 0.5
  sweep: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7, 1.0)
  piece: int = 0

  targets_are = 'tokens'

  def __post_init__(self):
    if self.kl_weight < 0 or self.kl_floor < 0:
      raise ValueError(f'Autoencode: kl_weight={self.kl_weight} and kl_floor={self.kl_floor} must be at least 0')

  def loss(self, model, params, batch, key: jax.Array):
    """(sum to differentiate, (count to divide by, sums to report)); counts are of tokens.

    batch: tokens, targets (negative: none), int32 [batch, time].  key: of dropout and noise.
    """
    tokens, targets = batch['tokens'], batch['targets']
    drop, noise, keep = jax.random.split(key, 3)
    mean, log_std = model.encode(params, model.drop_tokens(tokens, jax.random.uniform(drop, tokens.shape)))
    z = mean + jnp.exp(log_std) * jax.random.normal(noise, mean.shape, mean.dtype)
    z = model.drop_latent(z, jax.random.bernoulli(keep, 1 - model.dropout, z.shape))
    sums = self._cross_entropy(model, params, z, targets)
    there = (targets[:, ::model.chunk] >= 0)[..., None]
    divergence = jnp.sum(floored_divergence(mean, log_std, self.kl_floor) * there)
    each = model.chunk                                       # a mean over chunks is K times a sum over them, divided by the tokens
    total = each * sums['nats'] + self.kl_weight * each * divergence
    std = jnp.sum(jnp.exp(log_std) * there) * each / model.latent
    return total, (sums['count'], dict(loss=total, cross_entropy=sums['nats'], divergence=each * divergence, accuracy=sums['hits'], posterior_std=std))

  def held_out(self, model, params, batch, key: jax.Array):
    """As `loss`, without dropout and divergence, and with the sweep."""
    tokens, targets = batch['tokens'], batch['targets']
    mean, log_std = model.encode(params, tokens)
    keys = jax.random.split(jax.random.fold_in(key, jnp.sum(tokens)), len(self.sweep) + 1)
    at = lambda std, key: self._cross_entropy(model, params, mean + std * jax.random.normal(key, mean.shape, mean.dtype), targets)
    sums = at(jnp.exp(log_std), keys[0])
    found = {f'accuracy_at_{std:g}': at(std, key)['hits'] for std, key in zip(self.sweep, keys[1:])}
    return sums['nats'], (sums['count'], dict(loss=sums['nats'], accuracy=sums['hits']) | found)

  def _cross_entropy(self, model, params, z, targets) -> dict[str, jax.Array]:
    """Of z [batch, chunks, latent]; the largest logits never stand in memory whole."""
    x = model.expand(params, z).reshape(*targets.shape, model.width)
    return cross_entropy(model.logits, params, x, targets, model.vocab, self.piece)


@dataclasses.dataclass(frozen=True)
class NextVector:
  """mean over chunks that have a chunk before them, in the same document, of the head's loss (models.calm): for EnergyHead the energy score
  between its samples and draws from the posterior of the frozen autoencoder.  arXiv 2510.27688, eq. 9-10 (there the sum; the code's mean here).

  Reported beside the loss: the head's terms, for EnergyHead fidelity (samples to targets) and diversity (samples to each other).
  A chunk belongs to the document of its first token; chunks that end in padding are not predicted.
  The loss is no likelihood: it has no perplexity and no bits per byte, and compares only where the autoencoder is the same.
  """

  targets_are = 'next tokens'
  likelihood = False

  def loss(self, model, params, batch, key: jax.Array):
    """(sum to differentiate, (count to divide by, sums to report)); counts are of predicted chunks.

    batch: tokens, segment_ids (0: padding), int32 [batch, time], time a multiple of K.  key: of the head's noise and the posterior's.
    """
    tokens, ids, chunk = batch['tokens'], batch['segment_ids'], model.chunk
    if tokens.shape[1] < 2 * chunk:
      raise ValueError(f'NextVector: rows of {tokens.shape[1]} tokens hold no second chunk of {chunk}')
    x, _ = model.hidden(params, tokens[:, :-chunk], segment_ids=ids[:, :-chunk])
    terms = model.losses(params, x, tokens[:, chunk:], key)
    document = model.chunk_ids(ids, tokens.shape[1])
    whole = jnp.all(ids.reshape(*document.shape, chunk) != 0, axis=-1)
    counts = (whole[:, 1:] & (document[:, 1:] == document[:, :-1])).astype(terms['loss'].dtype)
    sums = {name: jnp.sum(value * counts) for name, value in terms.items()}
    read = jnp.sum(ids != 0).astype(counts.dtype)
    return sums['loss'], (jnp.sum(counts), sums | dict(tokens=read))
