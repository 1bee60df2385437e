"""Generation with the carried state: the same `apply` for the prompt and for every new token."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.eval.temperature import Chunks
from ssmlab.models.calm import CALM

Draw = Callable[[Any, Any, jax.Array, jax.Array], jax.Array]      # (model, params, x [batch, width] after the last token, key) -> int32 [batch, tokens]


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is drawn from logits.

  temperature: 0 takes the largest.  top_k: only the k largest (0: all).  top_p: only the fewest whose probabilities reach p
    (nucleus sampling, arXiv 1904.09751, section 3.1), after the temperature.
  """
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if self.temperature < 0:
      raise ValueError(f'temperature={self.temperature} must be at least 0')
    if self.top_k < 0:
      raise ValueError(f'top_k={self.top_k} must be at least 0')
    if not 0 < self.top_p <= 1:
      raise ValueError(f'top_p={self.top_p} must be above 0 and at most 1')

  def __call__(self, model, params, x: jax.Array, key: jax.Array) -> jax.Array:
    """A Draw of an LM: int32 [batch, 1]."""
    return self.draw(key, model.logits(params, x))[:, None]

  def draw(self, key: jax.Array, logits: jax.Array) -> jax.Array:
    """logits float32 [batch, vocab] -> int32 [batch]."""
    if self.temperature == 0:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / self.temperature
    if self.top_k or self.top_p < 1:
      ordered = jnp.sort(logits, axis=-1, descending=True)
      kept = jnp.ones(ordered.shape, bool)
      if self.top_k:
        kept &= jnp.arange(ordered.shape[-1]) < self.top_k
      if self.top_p < 1:
        probability = jax.nn.softmax(jnp.where(kept, ordered, -jnp.inf), axis=-1)
        kept &= jnp.cumsum(probability, axis=-1) - probability < self.top_p           # mass before this one; the first always stays
      lowest = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
      logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


@functools.lru_cache(maxsize=32)
def _prepared(model, length: int | None):
  """The model with what does not depend on the tokens (long filters) done before the first of them, and the function of its parameters."""
  other, turned = model.for_generation(length)
  return other, turned if other is model else jax.jit(turned)


@functools.lru_cache(maxsize=32)
def _compiled(model, draw: Draw):
  """(read: tokens into a state, step: draw the next tokens and read them), compiled once per model and way of drawing."""
  def read(params, tokens, state, segment_ids):
    return model.hidden(params, tokens, state, segment_ids)[1]

  def step(params, state, key, index):
    tokens = draw(model, params, state['hidden'], jax.random.fold_in(key, index))
    if 'given' in state:
      tokens = jnp.where(jnp.arange(model.chunk) < state['count'][:, None], state['given'], tokens)
    return tokens, model.hidden(params, tokens, state)[1]
  return jax.jit(read, donate_argnums=2), jax.jit(step, donate_argnums=1 if model.chunk == 1 else ())


def _drawn(model, temperature: float, top_k: int, top_p: float) -> Draw:
  """How the model's next tokens are drawn."""
  if not isinstance(model, CALM):
    return Sampling(temperature, top_k, top_p)
  if (top_k, top_p) != (0, 1.0):
    raise ValueError(f'CALM has no probabilities: top_k={top_k} and top_p={top_p} must be 0 and 1')
  return Chunks(temperature)


def _rows(prompt_tokens) -> list[np.ndarray]:
  if getattr(prompt_tokens, 'ndim', None) == 1 or len(prompt_tokens) and np.ndim(prompt_tokens[0]) == 0:
    raise ValueError('prompt_tokens must be [batch, time] or a list of token lists, one per sequence')
  return [np.asarray(row, np.int32).reshape(-1) for row in prompt_tokens]


def _padded(rows: list[np.ndarray], chunk: int, most: int | None) -> tuple[np.ndarray, np.ndarray]:
  """The rows' whole chunks -> tokens and segment ids, padded on the left to a power of two of them, at most `most` tokens: few lengths are
  ever compiled."""
  rows = [row[:len(row) // chunk * chunk] for row in rows]
  chunks = max(len(row) for row in rows) // chunk
  time = min(chunk << max(chunks - 1, 0).bit_length() if chunks else 0, most or 2 ** 31)
  tokens, ids = np.zeros((len(rows), time), np.int32), np.zeros((len(rows), time), np.int32)
  for row, tok, seg in zip(rows, tokens, ids):
    tok[time - len(row):], seg[time - len(row):] = row, 1
  return tokens, ids


def _check_room(model, state, prompt: int, new: int) -> None:
  """What a model has filters or positions for bounds a document, and what a state has slots for what it can still read."""
  room, whose = (model.max_length, 'model can read') if state is None else (model.room(state), 'state has room for')
  if room is not None and prompt + new > room:
    raise ValueError(f'a prompt of {prompt} tokens and {new} new ones are more than the {room} that the {whose}')


def stream(model, params, prompt_tokens, max_new_tokens: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
           draw: Draw | None = None, key: jax.Array | None = None, state: Any = None, max_length: int = 0) -> Iterator[tuple[np.ndarray, Any]]:
  """Yields (tokens int32 [batch], state after them), one token at a time, whether the model draws them singly or K at once.  Arguments as for
  `generate`.

  A yielded state is given to the next step, which reuses its memory: keep the last one only.
  """
  rows = _rows(prompt_tokens)
  if not all(block.mixer.has_state for block in model.blocks):
    raise ValueError('the model reads in both directions: it has no state and cannot continue a text')
  chunk, draw = model.chunk, draw or _drawn(model, temperature, top_k, top_p)
  if state is None and min(map(len, rows)) < chunk:
    raise ValueError(f'a prompt of {min(map(len, rows))} tokens and no state to continue from: the first {chunk} must be given')
  if max((int(row.max()) for row in rows if row.size), default=0) >= model.vocab:
    raise ValueError(f'the prompt holds ids beyond the vocabulary of {model.vocab}')
  if state is not None and state['segment'].shape[0] != len(rows):
    raise ValueError(f'the state is of {state["segment"].shape[0]} sequences, the prompt of {len(rows)}')
  _check_room(model, state, max(map(len, rows)), max_new_tokens)
  if state is not None and 'given' in state:
    rows = [np.concatenate([given[:count], row]) for given, count, row in zip(np.asarray(state['given']), np.asarray(state['count']), rows)]
  over = [len(row) % chunk for row in rows]
  if other := [count for count in over if count != over[0]]:
    raise ValueError(f'prompts that are {over[0]} and {other[0]} tokens beyond whole chunks of {chunk} cannot be continued together')
  tokens, ids = _padded(rows, chunk, model.max_length)
  total = None if state is not None else max(tokens.shape[1] + over[0] + max_new_tokens, max_length)
  model, turned = _prepared(model, total)
  params = turned(params)
  read, step = _compiled(model, draw)
  if state is None:
    state = model.init_state(len(rows), total)
  else:
    ids = np.where(ids, np.maximum(np.asarray(state['segment']), 1)[:, None], 0)       # the prompt goes on with the state's document
    state = jax.tree.map(jnp.copy, state)                    # the caller's is not consumed
  if tokens.shape[1]:
    state = read(params, tokens, state, ids)
  if over[0]:
    given = np.stack([np.pad(row[len(row) - over[0]:], (0, chunk - over[0])) for row in rows])
    state = state | dict(given=given, count=np.asarray(over, np.int32))
  key = jax.random.key(0) if key is None else key
  begun, left = over[0], max_new_tokens
  for index in itertools.count():
    drawn, after = step(params, state, key, index)
    drawn = np.asarray(drawn)
    for place in range(begun, chunk):
      left -= 1
      yield drawn[:, place], after if place == chunk - 1 else state | dict(given=drawn, count=np.full(len(rows), place + 1, np.int32))
      if not left:
        return
    state, begun = after, 0


def generate(model, params, prompt_tokens, max_new_tokens: int, temperature: float = 1.0, top_p: float = 1.0, key: jax.Array | None = None,
             state: Any = None, *, top_k: int = 0, draw: Draw | None = None, stop: Sequence[int] = (), max_length: int = 0) -> tuple[np.ndarray, Any]:
  """Continues each prompt by up to max_new_tokens tokens.

  prompt_tokens: int [batch, time] or a list of token lists of unequal length.  With a state it is what comes next, and may be empty.
  temperature, top_p, top_k: see Sampling; a CALM, which has no probabilities, takes a temperature alone (eval.temperature.Chunks).
  draw: in their place any way of drawing.  key: jax.random key; the same key gives the same tokens.  state: from an earlier call.
  stop: ids after which a row has ended; it is filled with that id, and generation stops when every row has ended.
  max_length: tokens that the new state has room for in all (0: these); only attention and long filters need it.
  Returns (int32 [batch, new], state that has read prompt and new tokens).  Raises ValueError for options out of range, an empty prompt
  without a state, ids beyond the vocabulary, a state without room.
  """
  if max_new_tokens < 1:
    raise ValueError(f'max_new_tokens={max_new_tokens} must be at least 1')
  columns, ended = [], None
  for token, state in stream(model, params, prompt_tokens, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, draw=draw,
                             key=key, state=state, max_length=max_length):
    if ended is not None:
      token = np.where(ended, columns[-1], token)
    columns.append(token)
    if len(stop):
      ended = np.isin(token, stop)
      if ended.all():
        break
  return np.stack(columns, axis=1), state
