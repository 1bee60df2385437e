"""CALM: a language model that predicts K tokens at a time, as one vector.  Continuous Autoregressive Language Models, arXiv 2510.27688.

shaochenze/calm, models/modeling_energy.py.  There the backbone is a Transformer; here it is any pattern of blocks.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssmlab.core import dtypes, inits
from ssmlab.core.params import Param
from ssmlab.layers.linear import linear, linear_params
from ssmlab.layers.norms import LayerNorm
from ssmlab.models.calm.autoencoder import Autoencoder
from ssmlab.models.calm.diffusion_head import DiffusionHead
from ssmlab.models.calm.energy_head import EnergyHead
from ssmlab.models.calm.flow_head import FlowHead
from ssmlab.models.lm import LM

NORM = LayerNorm(1e-6)


def frozen(tree):
  """The same declarations as constants: no learning rate, no weight decay, and they do not count as parameters."""
  return jax.tree.map(lambda p: dataclasses.replace(p, rate=0.0, weight_decay=False), tree, is_leaf=lambda x: isinstance(x, Param))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CALM(LM):
  """x[p] = norm(W2 silu(W1 [e_1 .. e_K] + b1) + b2), e of the K tokens of chunk p;  h = blocks(x);  z ~ head(h[p], noise);
  tokens of chunk p + 1 = argmax decode(z).

  The fields of LM, and: pattern, depth: the backbone, one step for K tokens; states, positions and lengths inside count chunks.
  autoencoder: trained before, its parameters are constants here (train.start_at puts them there).
  head: EnergyHead, FlowHead or DiffusionHead.
  padding: id whose embedding is zero at first and never learned, or None.
  Rows of tokens are a multiple of K long; a chunk belongs to the document of its first token.
  """
  autoencoder: Autoencoder
  head: EnergyHead | FlowHead | DiffusionHead = EnergyHead()
  padding: int | None = None

  def __post_init__(self):
    super().__post_init__()
    if self.autoencoder.vocab != self.vocab:
      raise ValueError(f'CALM: autoencoder.vocab={self.autoencoder.vocab} must be vocab={self.vocab}')
    if self.embedding.positions or self.embedding.types or self.embedding.norm is not None:
      raise ValueError(f'CALM: {self.embedding} must be a plain table: no positions, types or norm')
    if self.padding is not None and not 0 <= self.padding < self.vocab:
      raise ValueError(f'CALM: padding={self.padding} must be an id below vocab={self.vocab}, or None')

  @property
  def chunk(self) -> int:
    """K."""
    return self.autoencoder.chunk

  @property
  def max_length(self) -> int | None:
    """As for LM, in tokens."""
    chunks = super().max_length
    return None if chunks is None else chunks * self.chunk

  def params(self) -> dict[str, Any]:
    """Declarations: as for LM, compress, and the autoencoder's, which are not learned."""
    d, tree = self.width, self._stack_params()
    compress = dict(first=linear_params(self.chunk * d, 2 * d), second=linear_params(2 * d, d, ('inner', 'width')), norm=NORM.params(d))
    embedding = self.embedding.params(self.vocab, d)
    if self.padding is not None:
      draw = embedding['table'].init
      blank = lambda key, shape, layer: draw(key, shape, layer).at[self.padding].set(0.0)
      embedding['table'] = dataclasses.replace(embedding['table'], init=blank)
    return dict(embedding=embedding, compress=compress, norm=self.norm.params(d), head=self.head.params(d, self.autoencoder.latent),
                autoencoder=frozen(self.autoencoder.params())) | tree

  def init_state(self, batch: int, max_length: int) -> dict[str, Any]:
    """As for LM, and the tokens of a chunk that has only begun, which the blocks have not read yet: given int32 [batch, K], of which the
    first `count` [batch] are there.  max_length: in tokens."""
    given = dict(given=jnp.zeros((batch, self.chunk), jnp.int32), count=jnp.zeros((batch,), jnp.int32))
    return super().init_state(batch, -(-max_length // self.chunk)) | given

  def room(self, state) -> int | None:
    """As for LM, in tokens."""
    chunks = super().room(state)
    return None if chunks is None else chunks * self.chunk - int(state['count'].max())

  def for_generation(self, length: int | None):
    return super().for_generation(None if length is None else -(-length // self.chunk))

  # What it computes.

  def apply(self, params, tokens: jax.Array, state=None, segment_ids: jax.Array | None = None, *, noise: jax.Array | None = None):
    """tokens int32 [batch, time] -> (float32 logits [batch, chunks, K, vocab] of every next chunk, state after the tokens or None).

    noise: [batch, chunks, ...] from head.draw_noise; None: zeros, the middle of it, which is no sample.
    """
    x, state = self.hidden(params, tokens, state, segment_ids)
    return self.logits(params, x, noise), state

  def hidden(self, params, tokens: jax.Array, state=None, segment_ids: jax.Array | None = None):
    """As for LM: ([batch, chunks, width], state); entry p has read chunks 0 to p, and what a state had `given` counts no more."""
    x, after = super().hidden(params, tokens, state, self.chunk_ids(segment_ids, tokens.shape[1]))
    return x, after and after | {name: jnp.zeros_like(state[name]) for name in ('given', 'count')}

  def chunk_ids(self, segment_ids: jax.Array | None, time: int) -> jax.Array | None:
    """Document of every chunk, [batch, chunks]: that of its first token."""
    if time % self.chunk:
      raise ValueError(f'CALM: {time} tokens are not a multiple of chunk={self.chunk}')
    return None if segment_ids is None else segment_ids[:, ::self.chunk]

  def sample(self, params, x: jax.Array, noise: jax.Array | None = None) -> jax.Array:
    """x [..., width] from `hidden` -> latent vectors float32 [..., latent]; noise as for `apply`."""
    latent = self.autoencoder.latent
    if noise is None:
      shape = jax.eval_shape(lambda: self.head.draw_noise(jax.random.key(0), x.shape[:-1], latent)).shape
      noise = jnp.zeros(shape, jnp.float32)
    z = self.head.sample(self._head(params, x), x, noise)
    return z.astype(jnp.promote_types(z.dtype, jnp.float32))

  def logits(self, params, x: jax.Array, noise: jax.Array | None = None) -> jax.Array:
    """x [..., width] from `hidden` -> float32 [..., K, vocab] of the next chunk."""
    return self.autoencoder.decode(params['autoencoder'], self.sample(params, x, noise))

  def draw(self, params, x: jax.Array, key: jax.Array) -> jax.Array:
    """x [..., width] -> the tokens of a next chunk, int32 [..., K], one sample at temperature 1."""
    x = x.astype(dtypes.activation_dtype(self.activations))
    noise = self.head.draw_noise(key, x.shape[:-1], self.autoencoder.latent)
    return jnp.argmax(self.logits(params, x, noise), axis=-1).astype(jnp.int32)

  def losses(self, params, x: jax.Array, tokens: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    """x [batch, chunks, width] from `hidden`, tokens int32 [batch, chunks * K] of the chunks to predict -> the head's {name: [batch, chunks]}.

    Targets are drawn from the posterior of the autoencoder, through which no gradient goes.
    """
    mean, log_std = jax.lax.stop_gradient(self.autoencoder.encode(params['autoencoder'], tokens))
    return self.head.loss(self._head(params, x), x, mean, log_std, key)

  def _head(self, params, x: jax.Array):
    """The head's parameters in the dtype of x."""
    return dtypes.cast(self.head.params(self.width, self.autoencoder.latent), params['head'], x.dtype)

  def _embed(self, params, tokens, segment_ids=None, positions=None) -> jax.Array:
    """[batch, chunks, width]: the embeddings of a chunk's tokens, compressed to one."""
    dtype, declared = dtypes.activation_dtype(self.activations), self.params()
    e = self.embedding.apply(dtypes.cast(declared['embedding'], params['embedding'], dtype), tokens)
    if self.padding is not None:
      e = jnp.where((tokens == self.padding)[..., None], jax.lax.stop_gradient(e), e)
    params = dtypes.cast(declared['compress'], params['compress'], dtype)
    e = e.reshape(tokens.shape[0], -1, self.chunk * self.width)
    return NORM.apply(params['norm'], linear(params['second'], jax.nn.silu(linear(params['first'], e))))

  def walk(self, params, tokens: jax.Array, segment_ids: jax.Array | None = None):
    return super().walk(params, tokens, self.chunk_ids(segment_ids, tokens.shape[1]))

  # What it costs.

  def flops(self, length: int) -> float:
    """Forward FLOPs of training per token at a context of `length` tokens: a third of what a step costs, in which the head stands for all
    its samples and the encoder, which has no backward pass, for a third of itself."""
    backbone = sum(b.mixer.flops(self.width, length // self.chunk) + (b.channel.flops(self.width) if b.channel else 0) for b in self.blocks)
    head = self.head.samples * self.head.call_flops(self.width, self.autoencoder.latent)
    return (backbone + self.compression_flops() + head) / self.chunk + self.autoencoder.encoder_flops() / 3

  def compression_flops(self) -> float:
    """Forward FLOPs of the compression per chunk."""
    return 2 * (2 * self.width * self.chunk * self.width + 2 * self.width ** 2)
