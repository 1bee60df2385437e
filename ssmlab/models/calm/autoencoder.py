"""CALM's autoencoder: K tokens to one Gaussian over vectors, and back.

Continuous Autoregressive Language Models, arXiv 2510.27688, section 2; shaochenze/calm, models/modeling_autoencoder.py, which is followed where
the paper is silent: pre-norm residual layers, a norm at the end of both halves, token dropout to id 0, the floor of the divergence for every
element, a head that gives the logarithm of the standard deviation.  Here the encoder computes in float32 unless `activations` says otherwise
(there its embeddings are rounded to bfloat16 in training).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssmlab.core import dtypes, inits
from ssmlab.core.params import Param, shapes, size
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import look_up
from ssmlab.layers.linear import linear, linear_params
from ssmlab.layers.norms import RMSNorm


def floored_divergence(mean: jax.Array, log_std: jax.Array, floor: float) -> jax.Array:
  """max(KL(N(mean, std^2) || N(0, 1)), floor) of every element, in nats; below the floor the gradient is zero.  arXiv 2510.27688, eq. 3-4."""
  each = 0.5 * (jnp.square(mean) + jnp.exp(2 * log_std) - 1 - 2 * log_std)
  return jnp.maximum(each, floor)


@dataclasses.dataclass(frozen=True)
class Autoencoder:
  """tokens of a chunk -> (mean, log_std) of its latent vector; latent vector -> logits of the tokens.  No chunk sees another.

  F(x) = x + GatedMLP(RMSNorm(x)).
  Encoder: embed, half its layers F, squeeze K vectors to one, the other half, norm, a linear map to mean and log_std.
  Decoder: a linear map, half its layers F, expand one vector to K, the other half, norm, product with the embedding's table.

  vocab: ids.  chunk: K, tokens per vector.  width: of every vector inside (the paper's h); hidden: inside F.  latent: size of the vector (l).
  encoder_layers, decoder_layers: even numbers of F.
  dropout: share of tokens that become id 0, and of latent entries that become 0 after the noise, in training only.
  eps: of the norms.  activations: as for LM; mean, log_std and logits are float32 whatever it says.
  """
  vocab: int
  chunk: int = 4
  width: int = 512
  hidden: int = 1280
  latent: int = 128
  encoder_layers: int = 2
  decoder_layers: int = 2
  dropout: float = 0.15
  eps: float = 1e-6
  activations: str = 'float32'

  max_length = None                                         # what a network reads has no bound here
  remat = 'none'
  head = None

  def __post_init__(self):
    for name in ('vocab', 'chunk', 'width', 'hidden', 'latent'):
      if getattr(self, name) < 1:
        raise ValueError(f'Autoencoder: {name}={getattr(self, name)} must be at least 1')
    for name in ('encoder_layers', 'decoder_layers'):
      if getattr(self, name) < 0 or getattr(self, name) % 2:
        raise ValueError(f'Autoencoder: {name}={getattr(self, name)} must be an even number, half before and half after the change of resolution')
    if not 0 <= self.dropout < 1:
      raise ValueError(f'Autoencoder: dropout={self.dropout} must be at least 0 and below 1')
    dtypes.activation_dtype(self.activations)

  @property
  def _norm(self) -> RMSNorm:
    return RMSNorm(self.eps)

  @property
  def _mlp(self) -> GatedMLP:
    return GatedMLP(self.hidden, start=0.02, depth_scaled=False)

  def params(self) -> dict[str, Any]:
    """Declarations: embedding (both ends), encoder, decoder; F's are numbered from the tokens' or the vector's side."""
    h, layer = self.width, lambda: dict(norm=self._norm.params(self.width), mlp=self._mlp.params(self.width))
    layers = lambda count: {str(i): layer() for i in range(count)}
    return dict(
        embedding=dict(table=Param((self.vocab, h), (None, 'width'), inits.normal(0.02))),
        encoder=dict(layers=layers(self.encoder_layers), squeeze=linear_params(self.chunk * h, h, ('inner', 'width')),
                     norm=self._norm.params(h), latent=linear_params(h, 2 * self.latent)),
        decoder=dict(layers=layers(self.decoder_layers), latent=linear_params(self.latent, h, ('inner', 'width')),
                     expand=linear_params(h, self.chunk * h), norm=self._norm.params(h)))

  # What it computes.

  def encode(self, params, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """tokens int32 [batch, time], time a multiple of K -> (mean, log_std) float32 [batch, time / K, latent]."""
    if tokens.shape[-1] % self.chunk:
      raise ValueError(f'Autoencoder: {tokens.shape[-1]} tokens are not a multiple of chunk={self.chunk}')
    params, first = self._cast(params), self.encoder_layers // 2
    encoder = params['encoder']
    x = look_up(params['embedding']['table'], tokens)
    x = self._through(encoder['layers'], x, 0, first)
    x = linear(encoder['squeeze'], x.reshape(*tokens.shape[:-1], -1, self.chunk * self.width))
    x = self._through(encoder['layers'], x, first, self.encoder_layers)
    both = linear(encoder['latent'], self._norm.apply(encoder['norm'], x))
    return tuple(jnp.split(both.astype(jnp.promote_types(both.dtype, jnp.float32)), 2, axis=-1))

  def expand(self, params, z: jax.Array) -> jax.Array:
    """Latent vectors [..., latent] -> [..., K, width], what `logits` takes."""
    params, first = self._cast(params), self.decoder_layers // 2
    decoder = params['decoder']
    x = linear(decoder['latent'], z.astype(dtypes.activation_dtype(self.activations)))
    x = linear(decoder['expand'], self._through(decoder['layers'], x, 0, first))
    x = x.reshape(*z.shape[:-1], self.chunk, self.width)
    return self._norm.apply(decoder['norm'], self._through(decoder['layers'], x, first, self.decoder_layers))

  def logits(self, params, x: jax.Array) -> jax.Array:
    """x [..., width] from `expand` -> float32 [..., vocab]."""
    table = params['embedding']['table'].astype(x.dtype)
    return jnp.matmul(x, table.T, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))

  def decode(self, params, z: jax.Array) -> jax.Array:
    """Latent vectors [..., latent] -> float32 logits [..., K, vocab]."""
    return self.logits(params, self.expand(params, z))

  def drop_tokens(self, tokens: jax.Array, uniform: jax.Array) -> jax.Array:
    """tokens with id 0 where `uniform`, drawn from [0, 1) in the same shape, is at most `dropout`."""
    return jnp.where(uniform > self.dropout, tokens, 0)

  def drop_latent(self, z: jax.Array, kept: jax.Array) -> jax.Array:
    """z with zeros where `kept`, of the same shape and true with probability 1 - dropout, is false; the rest divided by 1 - dropout."""
    return z * kept.astype(z.dtype) / (1 - self.dropout)

  def _cast(self, params):
    return dtypes.cast(self.params(), params, dtypes.activation_dtype(self.activations))

  def _through(self, params, x: jax.Array, start: int, stop: int) -> jax.Array:
    for index in range(start, stop):
      layer = params[str(index)]
      x = x + self._mlp.apply(layer['mlp'], self._norm.apply(layer['norm'], x))[0]
    return x

  # What the launcher asks of every network.

  @property
  def depth(self) -> int:
    return self.encoder_layers + self.decoder_layers

  @property
  def blocks(self) -> tuple[Any, ...]:
    """No chunk sees another: there are none."""
    return ()

  def layers(self, tree) -> list[Any]:
    return []

  def first_non_finite(self, params, tokens: jax.Array, segment_ids: jax.Array | None = None) -> str | None:
    """'encoder' or 'decoder', whichever first gives what is not finite, or None."""
    mean, log_std = self.encode(params, tokens)
    if not (jnp.isfinite(mean).all() & jnp.isfinite(jnp.exp(log_std)).all()):
      return 'encoder'
    return None if jnp.isfinite(self.decode(params, mean)).all() else 'decoder'

  def encoder_flops(self) -> float:
    """Forward FLOPs of the encoder per token."""
    h, layers = self.width, self.encoder_layers // 2 * 3 * self.width * self.hidden
    return 2 * (layers + (layers + self.chunk * h * h + 2 * h * self.latent) / self.chunk)

  def decoder_flops(self) -> float:
    """Forward FLOPs of the decoder and its logits per token."""
    h, layers = self.width, self.decoder_layers // 2 * 3 * self.width * self.hidden
    return 2 * (layers + h * self.vocab + (layers + self.latent * h + self.chunk * h * h) / self.chunk)

  def flops(self, length: int) -> float:
    """Forward FLOPs per token; `length` does not matter."""
    return self.encoder_flops() + self.decoder_flops()

  def size(self) -> int:
    """Number of parameters."""
    return size(self.params())

  def shapes(self):
    """Shapes of the parameters, float32."""
    return shapes(self.params())

  def state_bytes(self, max_length: int) -> int:
    """Nothing is carried between chunks."""
    return 0

  def activation_width(self) -> int:
    """Values per token that the backward pass keeps, about."""
    return self.depth * (2 * self.width + 3 * self.hidden)
