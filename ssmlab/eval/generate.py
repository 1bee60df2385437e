"""Generation with the carried state: the same `apply` for the prompt and for every new token."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.models.calm import CALM, generation


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
def _compiled(model, sampling: Sampling):
  """(read: tokens into a state, step: draw one token and read it), compiled once per model and way of drawing."""
  def read(params, tokens, state, segment_ids):
    return model.hidden(params, tokens, state, segment_ids)[1]

  def step(params, state, key, index):
    token = sampling.draw(jax.random.fold_in(key, index), model.logits(params, state['hidden']))
    return token, model.hidden(params, token[:, None], state)[1]
  return jax.jit(read, donate_argnums=2), jax.jit(step, donate_argnums=1)


def _rows(prompt_tokens) -> list[np.ndarray]:
  if getattr(prompt_tokens, 'ndim', None) == 1 or len(prompt_tokens) and np.ndim(prompt_tokens[0]) == 0:
    raise ValueError('prompt_tokens must be [batch, time] or a list of token lists, one per sequence')
  return [np.asarray(row, np.int32).reshape(-1) for row in prompt_tokens]


def _padded(rows: list[np.ndarray], most: int | None) -> tuple[np.ndarray, np.ndarray]:
  """Rows of unequal length -> tokens and segment ids, padded on the left to a power of two, at most `most`: few lengths are ever compiled."""
  time = max(len(row) for row in rows)
  time = min(1 << max(time - 1, 0).bit_length(), most or 2 ** 31)
  tokens, ids = np.zeros((len(rows), time), np.int32), np.zeros((len(rows), time), np.int32)
  for row, tok, seg in zip(rows, tokens, ids):
    tok[time - len(row):], seg[time - len(row):] = row, 1
  return tokens, ids


def stream(model, params, prompt_tokens, max_new_tokens: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
           key: jax.Array | None = None, state: Any = None) -> Iterator[tuple[np.ndarray, Any]]:
  """Yields (tokens int32 [batch], state after them), one step at a time.  Arguments as for `generate`.

  A yielded state is given to the next step, which reuses its memory: keep the last one only.
  """
  if isinstance(model, CALM):
    if (temperature, top_k, top_p) != (1.0, 0, 1.0):
      raise ValueError(f'CALM has no probabilities: temperature={temperature}, top_k={top_k}, top_p={top_p} must be 1, 0 and 1 here')
    yield from _by_chunks(model, params, prompt_tokens, max_new_tokens, key, state)
    return
  rows = _rows(prompt_tokens)
  if not all(block.mixer.has_state for block in model.blocks):
    raise ValueError('the model reads in both directions: it has no state and cannot continue a text')
  if state is None and any(len(row) == 0 for row in rows):
    raise ValueError('an empty prompt needs a state to continue from')
  if rows and max(rows, key=len).size and max(int(row.max()) for row in rows if row.size) >= model.vocab:
    raise ValueError(f'the prompt holds ids beyond the vocabulary of {model.vocab}')
  _check_length(model, _read_before(state) + max(len(row) for row in rows), max_new_tokens)
  tokens, ids = _padded(rows, model.max_length)
  total = None if state is not None else tokens.shape[1] + max_new_tokens
  model, turned = _prepared(model, total)
  params = turned(params)
  read, step = _compiled(model, Sampling(temperature, top_k, top_p))
  if state is None:
    state = model.init_state(len(rows), total)
  else:
    if state['segment'].shape[0] != len(rows):
      raise ValueError(f'the state is of {state["segment"].shape[0]} sequences, the prompt of {len(rows)}')
    _check_room(state, max(len(row) for row in rows) + max_new_tokens)
    ids = np.where(ids, np.maximum(np.asarray(state['segment']), 1)[:, None], 0)       # the prompt goes on with the state's document
    state = jax.tree.map(jnp.copy, state)                    # the caller's is not consumed
  if max(len(row) for row in rows):
    state = read(params, tokens, state, ids)
  key = jax.random.key(0) if key is None else key
  for index in range(max_new_tokens):
    token, state = step(params, state, key, index)
    yield np.asarray(token), state


def _by_chunks(model: CALM, params, prompt_tokens, max_new_tokens: int, key, state) -> Iterator[tuple[np.ndarray, Any]]:
  """As `stream`; a chunk's tokens come one after another, each with the state that has read the whole chunk."""
  rows = _rows(prompt_tokens)
  if over := [len(row) % model.chunk for row in rows if len(row) % model.chunk != len(rows[0]) % model.chunk]:
    raise ValueError(f'prompts that are {len(rows[0]) % model.chunk} and {over[0]} tokens beyond whole chunks of {model.chunk} cannot be continued together')
  over = len(rows[0]) % model.chunk
  steps = max(len(row) for row in rows) // model.chunk - (-(over + max_new_tokens) // model.chunk)          # of the backbone
  _check_length(model, model.chunk * _read_before(state), model.chunk * steps)
  if state is not None:
    _check_room(state, steps)
  sent = -over
  for chunk, state in generation.stream(model, params, rows, key=key, state=state, max_length=generation.room(model, rows, max_new_tokens)):
    for column in chunk.T:
      sent += 1
      if sent > 0:
        yield column, state
      if sent == max_new_tokens:
        return


def _read_before(state) -> int:
  """Positions that the longest row of a state has read, where the state counts them."""
  counts = [] if state is None else _leaves(state, 'read') + [state.get('position', np.zeros(1))]
  return max((int(count.max()) for count in counts), default=0)


def _check_length(model, prompt: int, new: int) -> None:
  """What a model has filters or positions for bounds a document, whatever the state has room for."""
  if model.max_length is not None and prompt + new > model.max_length:
    raise ValueError(f'a prompt of {prompt} tokens and {new} new ones are more than the {model.max_length} that the model can read')


def _leaves(state, name: str) -> list[jax.Array]:
  return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state) if getattr(path[-1], 'key', None) == name]


def _check_room(state, new: int) -> None:
  """An attention cache has a fixed number of slots; the longest one of the model bounds what can still be read.  So has a long filter's history."""
  of = lambda name: _leaves(state, name)
  room = max((held.shape[-1] - int(written.max()) for held, written in zip(of('held'), of('written'))), default=None)
  rooms = [inputs.shape[read.ndim] - int(read.max()) for inputs, read in zip(of('inputs'), of('read'))] + ([] if room is None else [room])
  room = min(rooms, default=None)
  if room is not None and new > room:
    raise ValueError(f'the state has room for {room} more tokens, but {new} are wanted; make it with a larger max_length')


def generate(model, params, prompt_tokens, max_new_tokens: int, temperature: float = 1.0, top_p: float = 1.0, key: jax.Array | None = None,
             state: Any = None, *, top_k: int = 0, stop: Sequence[int] = (), max_length: int = 0) -> tuple[np.ndarray, Any]:
  """Continues each prompt by up to max_new_tokens tokens.

  prompt_tokens: int [batch, time] or a list of token lists of unequal length.  With a state it is what comes next, and may be empty.
  temperature, top_p, top_k: see Sampling.  key: jax.random key; the same key gives the same tokens.  state: from an earlier call.
  stop: ids after which a row has ended; it is filled with that id, and generation stops when every row has ended.
  max_length: tokens that the new state has room for in all (0: these); only attention needs it.
  Returns (int32 [batch, new], state that has read prompt and new tokens).  Raises ValueError for options out of range, an empty prompt
  without a state, ids beyond the vocabulary, a state without room.
  """
  if max_new_tokens < 1:
    raise ValueError(f'max_new_tokens={max_new_tokens} must be at least 1')
  if state is None and max_length:
    least = getattr(model, 'chunk', 1)
    if any(len(row) < least for row in _rows(prompt_tokens)):
      raise ValueError(f'a prompt of {min(map(len, _rows(prompt_tokens)))} tokens and no state: the first {least} must be given')
    state = model.init_state(len(prompt_tokens), max_length)
  columns, ended = [], None
  for token, state in stream(model, params, prompt_tokens, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, key=key, state=state):
    if ended is not None:
      token = np.where(ended, columns[-1], token)
    columns.append(token)
    if len(stop):
      ended = np.isin(token, stop)
      if ended.all():
        break
  return np.stack(columns, axis=1), state
