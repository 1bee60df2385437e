"""Fine-tuning an encoder on labelled sentences: classes or a number.  BERT, arXiv 1810.04805, section 4.1."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Classify:
  """mean of -log p(label), or of (output - label)^2.

  regression: labels are numbers and the classifier has one output (STS-B).
  """
  regression: bool = False

  targets_are = 'labels'

  @property
  def likelihood(self) -> bool:
    return not self.regression

  def loss(self, model, params, batch, key: jax.Array):
    """(sum to differentiate, (count to divide by, sums to report)).

    batch: tokens, segment_ids, types int32 [batch, time]; labels float32 [batch]; rows of padding do not count.  key: of dropout.
    """
    return self._measured(model, params, batch, key)

  def held_out(self, model, params, batch, key: jax.Array):
    """`loss` without dropout."""
    return self._measured(model, params, batch, None)

  def predicted(self, length: int) -> float:
    """Share of the tokens that the language model's head is computed on: none."""
    return 0.0

  def predict(self, model, params, batch, key: jax.Array | None = None) -> jax.Array:
    """float32 [batch]: the class, or the number."""
    logits = self._logits(model, params, batch, key)
    return logits[:, 0] if self.regression else jnp.argmax(logits, axis=-1).astype(jnp.float32)

  def _logits(self, model, params, batch, key) -> jax.Array:
    outputs = 0 if model.classifier is None else model.classifier.labels
    if outputs < 1 or (outputs == 1) != self.regression:
      raise ValueError(f'Classify: regression={self.regression}, but the model has {outputs} labels; 1 is for regression, 2 and more for classes')
    return model.classify(params, batch['tokens'], batch['segment_ids'], types=batch['types'], key=key)[:, 0]

  def _measured(self, model, params, batch, key):
    logits, labels = self._logits(model, params, batch, key), batch['labels']
    weight = jnp.any(batch['segment_ids'] != 0, axis=1).astype(logits.dtype)
    if self.regression:
      losses, right = jnp.square(logits[:, 0] - labels), {}
    else:
      number = labels.astype(jnp.int32)
      losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), number[:, None], axis=-1)[:, 0]
      right = dict(accuracy=jnp.sum((jnp.argmax(logits, axis=-1) == number) * weight))
    total, read = jnp.sum(losses * weight), jnp.sum(batch['segment_ids'] != 0).astype(logits.dtype)
    return total, (jnp.sum(weight), dict(loss=total, tokens=read) | right)
