"""Everything that a golden file can say about a causal language model, computed with our model and the code of load_pretrained."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.core.config import UserError
from ssmlab.eval.generate import generate
from ssmlab.interop import mapping, pretrained
from tests.golden.compare import Errors, Golden

# Systems whose table is torch's Embedding(padding_idx=pad_token_id), which gives that row no gradient from look-ups; the default id.
PADDED = {'llama-hf': None, 'recurrentgemma-hf': 0, 'bert-hf': 0, 'roberta-hf': 1, 'mosaicbert': 0, 'modernbert-hf': 50283}
TOKENWISE = 3              # tokens read one by one where the file has no continuation


def has_adapter(system: str) -> bool:
  try:
    return bool(pretrained.form_of(system))
  except UserError:
    return False


class Run:
  """One file: its model, and one compiled function for each way of calling it."""

  def __init__(self, golden: Golden):
    self.golden, self.errors = golden, Errors(golden)
    system, config = golden.meta['system'], golden.meta.get('config') or {}
    self.form = pretrained.form_of(system)
    self.model, self.params, _ = pretrained.build(system, config, golden.under('param/'), golden.name)
    self.padding = config.get('pad_token_id', PADDED[system]) if system in PADDED else None
    self.ids, self.more = golden.tokens('in/input_ids'), golden.tokens('in/cont_ids')
    lengths = {key: array.shape[1] for key, array in golden.tensors.items() if array.ndim > 1}
    together = lambda *keys: sum(lengths.get(key, 0) for key in keys)
    self.room = max(together('in/input_ids', 'in/cont_ids'), together('leftpad/in/input_ids'), together('decode/in/prompt', 'decode/out/tokens'))
    self.apply = jax.jit(self.model.apply)

  def start(self, rows: int):
    """One size of state for all calls, so that few are compiled."""
    return self.model.init_state(rows, self.room)

  def check(self) -> Errors:
    self.whole()
    self.hidden_states()
    self.carried()
    self.left_padded()
    self.greedy()
    left = self.golden.left()
    assert not left, f'{self.golden.name}: nothing looked at {", ".join(left)}'
    return self.errors

  def whole(self):
    """Logits, loss and gradients of the prompt in one call without a state."""
    golden, mask = self.golden, self.golden.tokens('in/attention_mask')
    ids, targets = None if mask is None or mask.all() else mask, golden.tokens('in/targets')         # targets: already shifted, below 0 do not count

    def loss(params):
      x, _ = self.model.hidden(self.without_padding(params), self.ids, segment_ids=ids)
      logits = self.model.logits(params, x)
      if targets is not None:
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
        return -jnp.sum(chosen * (targets >= 0)) / jnp.sum(targets >= 0), (x, logits)
      chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), self.ids[:, 1:, None], axis=-1)
      return -jnp.mean(chosen), (x, logits)
    (value, (x, logits)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(self.params)
    for key in sorted(key for key in golden.tensors if re.fullmatch(r'out/logits(_\w+)?', key)):
      self.errors.output(key, logits, golden.take(key), mask)
    if (stated := golden.take('out/loss')) is not None:
      self.errors.output('out/loss', value, stated.reshape(()), logits=False)
    if (stated := golden.take('out/hidden')) is not None:
      self.errors.output('out/hidden', x, stated, mask, logits=False)
    self.gradients(gradients)

  def without_padding(self, params):
    if self.padding is None:
      return params
    table = params['embedding']['table']
    table = table.at[self.padding].set(jax.lax.stop_gradient(table[self.padding]))
    return params | dict(embedding=params['embedding'] | dict(table=table))

  def gradients(self, gradients):
    theirs, rules = self.golden.under('grad/'), self.form.rules(self.model)
    mine = mapping.read(rules, self.model, gradients)
    if self.model.head.tied:
      mine[self.form.head] = mine[next(rule.theirs for rule in rules if rule.ours == 'embedding/table')]
    largest = max((float(np.abs(gradient).max()) for gradient in theirs.values()), default=0.0)
    for key, gradient in theirs.items():
      assert key in mine, f'grad/{key} is a gradient of no parameter of ours'
      self.errors.gradient(f'grad/{key}', mine[key], gradient, largest)

  def hidden_states(self):
    """Block by block and not scanned: hidden_states.0 is the embedding, .i what block i - 1 returns, the last one after the norm."""
    theirs = self.golden.under('out/hidden_states.')
    if not theirs:
      return
    model, params = self.model, self.params

    @jax.jit
    def walk(params):
      x = model.embedding.apply(params['embedding'], self.ids)
      signals, seen = {k: v for block in model.blocks for k, v in block.mixer.signals(x).items()}, [x]
      for index, block in enumerate(model.blocks):
        repeat, place = divmod(index, len(model.pattern))
        scanned = repeat < model.depth // len(model.pattern)
        mine = jax.tree.map(lambda a: a[repeat], params['blocks'][str(place)]) if scanned else params['tail'][str(place)]
        y, _, signals = block.mixer.apply_signals(mine['mixer'], model.norm.apply(mine['norm_mixer'], x), None, signals)
        x = x + y
        if block.channel is not None:
          x = x + block.channel.apply(mine['channel'], model.norm.apply(mine['norm_channel'], x))[0]
        seen.append(x)
      return [*seen[:-1], model.norm.apply(params['norm'], x)]
    for index, mine in enumerate(walk(params)):
      if str(index) in theirs:
        self.errors.output(f'out/hidden_states.{index}', mine, theirs.pop(str(index)), self.golden.tensors.get('in/attention_mask'), logits=False)
    assert not theirs, f'hidden states of no block: {", ".join(theirs)}'

  def carried(self):
    """The same with a state: prompt, then its continuation in one call, token by token, and from the authors' own state."""
    golden, logits = self.golden, self.golden.take('out/logits')
    if self.more is None:
      cut = max(self.ids.shape[1] - TOKENWISE, 1)
      _, state = self.read('out/logits (prompt)', self.ids[:, :cut], self.start(len(self.ids)), logits[:, :cut])
      state = self.one_by_one('out/logits (token by token)', self.ids[:, cut:], state, logits[:, cut:])
      self.state('out/state', state, self.ids.shape[1])
      return
    mine, after = self.read('out/logits (with a state)', self.ids, self.start(len(self.ids)), logits)
    theirs = self.state('out/state', after, self.ids.shape[1])
    continued, total = golden.take('out/cont_logits'), self.ids.shape[1] + self.more.shape[1]
    _, state = self.read('out/cont_logits', self.more, after, continued)
    self.state('out/state_after_cont', state, total)
    self.state('out/state_after_cont', self.one_by_one('out/cont_logits (token by token)', self.more, after, continued), total)
    if theirs:
      imported = mapping.import_state(self.form, self.model, theirs, self.ids.shape[1], self.room)
      self.read("out/cont_logits (from the authors' state)", self.more, imported, continued)

  def read(self, key: str, tokens, state, theirs):
    logits, state = self.apply(self.params, tokens, state)
    self.errors.output(key, logits, theirs)
    return logits, state

  def one_by_one(self, key: str, tokens, state, theirs):
    seen = []
    for column in range(tokens.shape[1]):
      logits, state = self.apply(self.params, tokens[:, column:column + 1], state)
      seen.append(np.asarray(logits))
    if seen:
      self.errors.output(key, np.concatenate(seen, axis=1), theirs)
    return state

  def state(self, prefix: str, state, tokens: int) -> dict[str, np.ndarray]:
    """Compares with every golden tensor PREFIX.REST or PREFIX/REST; returns those under the authors' names."""
    theirs = {key[len(prefix) + 1:].replace('/', '.'): self.golden.take(key) for key in self.golden.tensors if re.match(f'{prefix}[./]', key)}
    mine = mapping.export_state(self.form, self.model, state, tokens) if theirs else {}
    for key, value in theirs.items():
      assert key in mine, f'{prefix}.{key} is no state of ours'
      self.errors.state(f'{prefix}.{key}', mine[key], value)
    return theirs

  def left_padded(self):
    """A batch padded on the left, with and without a state; the golden positions must be the ones that segment ids imply."""
    golden, ids = self.golden, self.golden.tokens('leftpad/in/input_ids')
    if ids is None:
      return
    mask, positions, theirs = (golden.take(f'leftpad/{name}') for name in ('in/attention_mask', 'in/position_ids', 'out/logits'))
    if positions is not None:
      assert (positions == np.cumsum(mask, axis=1) - 1)[mask == 1].all(), 'leftpad/in/position_ids do not count real tokens'
    segment_ids = np.asarray(mask, np.int32)
    logits, _ = self.apply(self.params, ids, None, segment_ids)
    self.errors.output('leftpad/out/logits', logits, theirs, mask)
    logits, _ = self.apply(self.params, ids, self.start(len(ids)), segment_ids)
    self.errors.output('leftpad/out/logits (with a state)', logits, theirs, mask)

  def greedy(self):
    """Greedy decoding with the carried state: the same tokens, and the logits that chose them."""
    golden, prompt = self.golden, self.golden.tokens('decode/in/prompt')
    if prompt is None:
      return
    tokens, theirs = golden.tokens('decode/out/tokens'), golden.take('decode/out/logits')
    logits, state = self.apply(self.params, prompt, self.start(len(prompt)))
    seen = [np.asarray(logits[:, -1])]
    for column in range(tokens.shape[1] - 1):
      logits, state = self.apply(self.params, tokens[:, column:column + 1], state)
      seen.append(np.asarray(logits[:, -1]))
    self.errors.output('decode/out/logits', np.stack(seen, axis=1), theirs)
    written, _ = generate(self.model, self.params, prompt, tokens.shape[1], temperature=0.0)
    assert (written == tokens).all(), f'greedy decoding gives {written.tolist()}, golden {tokens.tolist()}'
