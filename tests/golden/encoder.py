"""Everything that a golden file can say about an encoder, computed with our model and the code of load_pretrained."""

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.models.encoder import Encoder
from ssmlab.ops.attention import alibi_slopes
from tests.golden.compare import Errors, Golden
from tests.golden.language_model import Run

IGNORED = -100             # label of a position that is not in the loss


class EncoderRun(Run):
  """One file of an encoder.  Positions at padding are not compared: the authors' are garbage or zeros."""

  def check(self) -> Errors:
    self.types, self.mask = self.golden.tokens('in/token_type_ids'), self.golden.tokens('in/attention_mask')
    self.whole()
    self.hidden_states()
    self.classes()
    self.without_mask()
    self.distances()
    left = self.golden.left()
    assert not left, f'{self.golden.name}: nothing looked at {", ".join(left)}'
    return self.errors

  def whole(self):
    """Logits, loss over the labelled positions and its gradients."""
    golden, labels = self.golden, self.golden.tokens('in/labels')

    def loss(params):
      x, _ = self.model.hidden(self.without_padding(params), self.ids, None, self.mask, types=self.types)
      logits = self.model.logits(params, x)
      chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
      counts = labels != IGNORED
      return -jnp.sum(chosen * counts) / jnp.sum(counts), (x, logits)
    (value, (x, logits)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(self.params)
    self.errors.output('out/logits', logits, golden.take('out/logits'), self._real(logits))
    self.errors.output('out/loss', value, golden.take('out/loss').reshape(()), logits=False)
    if (last := golden.take('out/last_hidden_state')) is not None:
      self.errors.output('out/last_hidden_state', x, last, self._real(x), logits=False)
    self.gradients(gradients)

  def _real(self, array) -> np.ndarray | None:
    return None if self.mask is None else np.broadcast_to(self.mask[..., None], array.shape)

  def hidden_states(self):
    """Block by block: hidden_states.0 is the embedding, .i what block i - 1 returns, the last one after the norm on top if there is one."""
    theirs = self.golden.under('out/hidden_states.')
    if not theirs:
      return
    model = self.model

    @jax.jit
    def walk(params):
      x = model._embed(params, self.ids, self.mask, self.types)
      carry, seen = (x, {}), [x]
      for block, mine in zip(model.blocks, model.layers(params), strict=True):
        carry, _ = model._block(block, mine, carry, None, self.mask)
        seen.append(carry[0])
      return [*seen[:-1], model._top(params, carry[0])]
    for index, mine in enumerate(walk(self.params)):
      if str(index) in theirs:
        self.errors.output(f'out/hidden_states.{index}', mine, theirs.pop(str(index)), self._real(mine), logits=False)
    assert not theirs, f'hidden states of no block: {", ".join(theirs)}'

  def classes(self):
    if (theirs := self.golden.take('out/cls_logits')) is not None:
      classify = jax.jit(lambda params: self.model.classify(params, self.ids, self.mask, types=self.types))
      self.errors.output('out/cls_logits', classify(self.params)[:, 0], theirs)

  def without_mask(self):
    """A batch without padding, for which neither mask nor types are given."""
    if (ids := self.golden.tokens('nomask/in/input_ids')) is not None:
      logits, _ = self.apply(self.params, ids)
      self.errors.output('nomask/out/logits', logits, self.golden.take('nomask/out/logits'))

  def distances(self):
    """ALiBi's additive bias, [heads, time, time]."""
    if (theirs := self.golden.take('out/alibi_bias')) is not None:
      index = np.arange(theirs.shape[-1])
      slopes = np.array(alibi_slopes(self.model.blocks[0].mixer.heads))
      self.errors.output('out/alibi_bias', -slopes[:, None, None] * np.abs(index[:, None] - index), theirs, logits=False)


def run_of(golden: Golden) -> Run:
  """The comparisons that fit the file's model."""
  run = Run(golden)
  return EncoderRun(golden) if isinstance(run.model, Encoder) else run
