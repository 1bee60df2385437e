"""Generation by CALM: one step of the backbone, one vector and K tokens at a time, with the carried state."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Draw = Callable[[Any, Any, jax.Array, jax.Array], jax.Array]


def at_temperature_1(model, params, x: jax.Array, key: jax.Array) -> jax.Array:
  """x [batch, width] -> tokens int32 [batch, K]: one sample of the next chunk."""
  return model.draw(params, x, key)


@functools.lru_cache(maxsize=16)
def _compiled(model, draw: Draw):
  """(read: tokens into a state, step: draw a chunk and read it), compiled once per model and way of drawing."""
  def read(params, tokens, state, segment_ids):
    return model.hidden(params, tokens, state, segment_ids)[1]

  def step(params, state, key, given, count):
    dtype = jnp.bfloat16 if model.activations == 'bfloat16' else state['hidden'].dtype
    tokens = draw(model, params, state['hidden'].astype(dtype), key)
    tokens = jnp.where(jnp.arange(model.chunk) < count[:, None], given, tokens)
    return tokens, model.hidden(params, tokens, state)[1]
  return jax.jit(read, donate_argnums=2), jax.jit(step, donate_argnums=1)


def step_with(model, params, state, noise: jax.Array):
  """One step with given noise, [batch, ...] from head.draw_noise: (tokens int32 [batch, K], state after them)."""
  tokens = jnp.argmax(model.logits(params, state['hidden'], noise), axis=-1).astype(jnp.int32)
  return tokens, model.hidden(params, tokens, state)[1]


def _rows(prompt_tokens) -> list[np.ndarray]:
  if getattr(prompt_tokens, 'ndim', None) == 1 or len(prompt_tokens) and np.ndim(prompt_tokens[0]) == 0:
    raise ValueError('prompt_tokens must be [batch, time] or a list of token lists, one per sequence')
  return [np.asarray(row, np.int32).reshape(-1) for row in prompt_tokens]


def _chunked(rows: list[np.ndarray], chunk: int, bound: int | None):
  """(tokens, segment ids of whole chunks padded on the left, tokens [batch, K] left over on the right, their number [batch]).

  bound: most tokens that the model can read, None without one; there is no padding beyond it.
  """
  whole = [len(row) // chunk * chunk for row in rows]
  most = -(-max(whole) // chunk)
  most = (1 << max(most - 1, 0).bit_length() if most else 0) * chunk              # few lengths are ever compiled
  most = most if bound is None else min(most, bound)
  tokens, ids = np.zeros((len(rows), most), np.int32), np.zeros((len(rows), most), np.int32)
  given, count = np.zeros((len(rows), chunk), np.int32), np.zeros(len(rows), np.int32)
  for index, (row, size) in enumerate(zip(rows, whole)):
    tokens[index, most - size:], ids[index, most - size:] = row[:size], 1
    count[index] = len(row) - size
    given[index, :count[index]] = row[size:]
  return tokens, ids, given, count


def room(model, rows: list[np.ndarray], max_new_tokens: int) -> int:
  """Tokens that a new state must have room for: the prompts as they are padded and whole chunks of new ones."""
  longest = _chunked(rows, model.chunk, model.max_length)[0].shape[1]
  over = max((len(row) % model.chunk for row in rows), default=0)
  return longest + -(-(max_new_tokens + over) // model.chunk) * model.chunk


def stream(model, params, prompt_tokens, *, key: jax.Array | None = None, state: Any = None, max_length: int = 0,
           draw: Draw = at_temperature_1) -> Iterator[tuple[np.ndarray, Any]]:
  """Yields (int32 [batch, K], state after them), chunk by chunk and without end.  Arguments as for `generate`; max_length: for a new state.

  A yielded state is given to the next step, which reuses its memory: keep the last one only.
  """
  rows = _rows(prompt_tokens)
  if state is None and any(len(row) < model.chunk for row in rows):
    raise ValueError(f'a prompt of {min(map(len, rows))} tokens and no state: the first chunk, of {model.chunk} tokens, must be given')
  if max((int(row.max()) for row in rows if row.size), default=0) >= model.vocab:
    raise ValueError(f'the prompt holds ids beyond the vocabulary of {model.vocab}')
  tokens, ids, given, count = _chunked(rows, model.chunk, model.max_length)
  read, step = _compiled(model, draw)
  if state is None:
    state = model.init_state(len(rows), max(max_length, tokens.shape[1] + 2 * model.chunk))
  else:
    state = jax.tree.map(jnp.copy, state)                    # the caller's is not consumed
    ids = np.where(ids, np.maximum(np.asarray(state['segment']), 1)[:, None], 0)
  if tokens.shape[1]:
    state = read(params, tokens, state, ids)
  key, index = jax.random.key(0) if key is None else key, 0
  while True:
    chunk, state = step(params, state, jax.random.fold_in(key, index), given, count)
    yield np.asarray(chunk), state
    count, index = np.zeros_like(count), index + 1


def generate(model, params, prompt_tokens, max_new_tokens: int, key: jax.Array | None = None, state: Any = None, *,
             draw: Draw = at_temperature_1, max_length: int = 0) -> tuple[list[np.ndarray], Any]:
  """Continues each prompt by at least max_new_tokens tokens, up to the end of a chunk.

  prompt_tokens: int [batch, time] or a list of token lists.  What is over beyond whole chunks is kept: the first chunk drawn has its first
    tokens replaced by it (the authors' code pads there instead, which the model then reads).  With a state it is what comes next.
  draw: (model, params, x [batch, width], key) -> int32 [batch, K]: the next chunk; by default one sample, which is temperature 1.
  key: the same key gives the same tokens.  max_length: tokens that the new state has room for (0: these); only attention needs it.
  Returns ([int32 [new]] per row, state that has read prompt and all new tokens).
  """
  if max_new_tokens < 1:
    raise ValueError(f'max_new_tokens={max_new_tokens} must be at least 1')
  rows = _rows(prompt_tokens)
  left = np.array([len(row) % model.chunk for row in rows])
  steps = -(-(max_new_tokens + int(left.max(initial=0))) // model.chunk)
  max_length = max(max_length, room(model, rows, max_new_tokens))
  chunks = []
  for chunk, state in stream(model, params, rows, key=key, state=state, max_length=max_length, draw=draw):
    chunks.append(chunk)
    if len(chunks) == steps:
      break
  return [row[over:] for row, over in zip(np.concatenate(chunks, axis=1), left)], state
