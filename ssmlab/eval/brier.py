"""BrierLM: how good a language model is, measured by its samples.  CALM, arXiv 2510.27688, equations 12 to 15.

Brier-n takes the next n tokens as one outcome y of a law P: 2 P(y) - sum_x P(x)^2, a strictly proper score.  Two independent samples give the
unbiased estimate 1{x1 = y} + 1{x2 = y} - 1{x1 = x2}.  BrierLM = 100 (Brier-1 Brier-2 Brier-3 Brier-4)^(1/4), each averaged over the text first.

Author code: shaochenze/calm, models/modeling_calm.py (eval_brier) and train/train_ar.py.  Where we differ from it: the factor 100 is the paper's
(the code lacks it); a Brier-n that is not positive makes BrierLM 0 (there two negative factors cancel); every token is scored that something
predicts, also where fewer than four follow (there only windows of four).  Autoregressive models have probabilities: the accuracy term is
exact there and here; for the collision term they draw two paths and add the last step exactly, we draw one path, see `exact`.

What is measured: any model with init_state, hidden and draw(params, x, key) -> tokens [..., K], which draws the next `chunk` = K tokens given
x [..., width] from hidden, whose time axis counts chunks (CALM); without draw, hidden and logits of single tokens (LM).
Values of different tokenizers cannot be compared.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.core import mesh as meshes
from ssmlab.eval.heldout import place, share

N = 4                                                        # tokens in the longest outcome
FORMS = ('auto', 'exact', 'sampled')


class Windows(NamedTuple):
  """Samples beside the truth, int32 [batch, windows, 4] each.

  truth: the tokens of the text, -1 from where there is none on (the end of the document or the row).
  first, second: two independent draws, either of which may have read the true tokens before the one it draws (teacher forcing).
  paths: two draws that go on from their own tokens, where first and second do not.
  """
  truth: jax.Array
  first: jax.Array
  second: jax.Array
  paths: tuple[jax.Array, jax.Array] | None = None


def estimate(windows: Windows) -> jax.Array:
  """1{x1 = y} + 1{x2 = y} - 1{x1 = x2} of the first 1, 2, 3, 4 tokens: int32 [batch, windows, 4], each -1, 0 or 1.

  Where first and second were drawn after true tokens a later token counts only if the earlier ones are true, so that nothing is lost by it.
  """
  def same(x, y):
    prefixes = itertools.accumulate(jnp.moveaxis(x == y, -1, 0), jnp.logical_and)
    return jnp.stack(list(prefixes), axis=-1).astype(jnp.int32)
  truth, first, second, paths = windows
  return same(first, truth) + same(second, truth) - same(*(paths or (first, second)))


def chunk_windows(truth: jax.Array, first: jax.Array, second: jax.Array, onward: tuple[jax.Array, jax.Array] | None = None) -> Windows:
  """Windows of a model that draws chunks of K tokens, one at the start of every chunk.

  truth, first, second: int32 [batch, chunks, K]; first and second drawn after the true chunks before.
  onward: for K < 4 two draws [batch, chunks, J - 1, K] of the chunks after first[:, i] and second[:, i], J = ceil(4 / K); where the two have
  parted it does not matter what they are, so that both may be drawn after first[:, i].
  For K < 4 the last J - 1 chunks begin no window of their own; for K > 4 tokens from the fifth on are not scored.  (The authors leave out one
  window more for K < 4.)  Raises ValueError for K < 4 without onward.
  """
  chunk = truth.shape[-1]
  if chunk >= N:
    return Windows(truth[..., :N], first[..., :N], second[..., :N])
  if onward is None:
    raise ValueError(f'chunks of {chunk} tokens: windows of {N} need the draws that follow them')
  span = -(-N // chunk)
  count = truth.shape[1] - span + 1
  flat = lambda parts: jnp.concatenate(parts, axis=-1)[..., :N]
  teacher = lambda x: flat([x[:, i:count + i] for i in range(span)])
  path = lambda x, more: flat([x[:, :count], more[:, :count].reshape(more.shape[0], count, -1)])
  return Windows(teacher(truth), teacher(first), teacher(second), (path(first, onward[0]), path(second, onward[1])))


def brierlm(brier: np.ndarray) -> np.ndarray:
  """100 times the geometric mean of Brier-1 ... Brier-4 on the last axis; 0 if one of them is not positive."""
  return 100 * np.prod(np.maximum(brier, 0), axis=-1) ** (1 / N)


# A model, after every prefix.


def sampled(model, params, batch, key: jax.Array, stride: int = 1) -> Windows:
  """Two samples of 4 tokens after every stride-th prefix, or after every chunk.  Arguments as for `exact`; stride: 1 for a model with chunks."""
  if getattr(model, 'chunk', 1) >= N:                        # nothing drawn is read again: one pass over the rows serves
    x, _ = model.hidden(params, batch['tokens'], segment_ids=batch['segment_ids'])
    first, second = (_draw(model, params, x, key)[..., :N] for key in jax.random.split(key))
    return Windows(_chunk_truth(batch, model.chunk), first, second)
  two = lambda state, key: jax.lax.map(lambda key: _path(model, params, state, key), jax.random.split(key))
  drawn = _walk(model, params, batch, key, stride, two)[0]   # [windows, two, batch, 4]
  truth = _chunk_truth(batch, model.chunk) if hasattr(model, 'draw') else _truth(batch, stride)
  return Windows(truth, drawn[:, 0].swapaxes(0, 1), drawn[:, 1].swapaxes(0, 1))


def _draw(model, params, x: jax.Array, key: jax.Array) -> jax.Array:
  """x [..., width] -> the next tokens, int32 [..., K]."""
  if hasattr(model, 'draw'):
    return model.draw(params, x, key)
  return jax.random.categorical(key, model.logits(params, x)).astype(jnp.int32)[..., None]


def _path(model, params, state, key: jax.Array) -> jax.Array:
  """Four tokens after the state, each drawn after those before: int32 [batch, 4]."""
  def step(state, key):
    tokens = _draw(model, params, state['hidden'], key)
    return model.hidden(params, tokens, state)[1], tokens
  keys = jax.random.split(key, -(-N // getattr(model, 'chunk', 1)))
  state, before = jax.lax.scan(step, state, keys[:-1])
  parts = jnp.concatenate([before, _draw(model, params, state['hidden'], keys[-1])[None]])
  return parts.swapaxes(0, 1).reshape(parts.shape[1], -1)[:, :N]


def exact(model, params, batch, key: jax.Array, stride: int = 1) -> tuple[jax.Array, jax.Array]:
  """(2 P(y) - unbiased estimate of sum_x P(x)^2, float32 [batch, windows, 4]; the truth, as in Windows).

  model: a causal LM.  batch: tokens, targets, segment_ids, int32 [batch, time].  stride: a window begins after every stride-th token of a row,
  the first included; 1: after each.
  The sum over all x is the mean of S_1 ... S_n over paths drawn from q(x_i) = p(x_i)^2 / S_i, S_i = sum_v p(v | path)^2, since P(x)^2 is
  prod q(x_i) S_i.  So n = 1 has no noise at all, and one path serves (the authors: 1{two paths agree so far} S_n).
  """
  squares, log_p = _walk(model, params, batch, key, stride, lambda state, key: _follow(model, params, state, key), model.logits)
  right = jnp.exp(jnp.cumsum(_following(log_p, stride, 0.0), axis=-1))
  return 2 * right - jnp.cumprod(squares.swapaxes(0, 1), axis=-1), _truth(batch, stride)


def _follow(model, params, state, key: jax.Array) -> jax.Array:
  """sum_v p(v | path so far)^2 along a path after the state that is drawn from p^2: float32 [batch, 4]."""
  def look(state):
    log_p = jax.nn.log_softmax(model.logits(params, state['hidden']))
    return log_p, jnp.sum(jnp.exp(2 * log_p), axis=-1)

  def step(state, key):
    log_p, square = look(state)
    return model.hidden(params, jax.random.categorical(key, 2 * log_p).astype(jnp.int32)[:, None], state)[1], square
  state, before = jax.lax.scan(step, state, jax.random.split(key, N - 1))
  return jnp.concatenate([before, look(state)[1][None]]).T


def _walk(model, params, batch, key: jax.Array, stride: int, after, logits=None) -> tuple[jax.Array, jax.Array | None]:
  """Reads the rows `stride` tokens, or a chunk, at a time: (after(state, key) of every window, stacked; log p of the targets [batch, time]).

  The first call holds one token and padding, so that the rows' first windows are there; chunks begin with the row instead.
  """
  rows, time = batch['tokens'].shape
  size, before = (model.chunk, 0) if hasattr(model, 'draw') else (stride, stride - 1)
  calls = -(-(before + time) // size)
  fill = (0, 0), (before, calls * size - before - time)
  split = lambda x, value: jnp.pad(x, fill, constant_values=value).reshape(rows, calls, size).swapaxes(0, 1)
  parts = split(batch['tokens'], 0), split(batch['targets'], -1), split(batch['segment_ids'], 0)

  def call(state, xs):
    (tokens, targets, ids), key = xs
    x, state = model.hidden(params, tokens, state, ids)
    if logits is None:
      return state, (after(state, key), None)
    log_p = jax.nn.log_softmax(logits(params, x))
    return state, (after(state, key), jnp.take_along_axis(log_p, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0])
  _, (found, log_p) = jax.lax.scan(call, model.init_state(rows, _room(model, time)), (parts, jax.random.split(key, calls)))
  windows = -(-time // size)                                 # a last call of less than a stride ends in padding: no window begins there
  return found[:windows], None if log_p is None else log_p.swapaxes(0, 1).reshape(rows, calls * size)[:, before:before + time]


def _room(model, time: int) -> int:
  """Tokens of a row and of a path after it.  What a bounded model cannot read ends in windows that are not scored."""
  longest = time + 2 * N                                     # a path by chunks of less than four ends within that
  return min(longest, model.max_length or longest)


def _following(x: jax.Array, stride: int, fill) -> jax.Array:
  """[batch, time] -> the 4 entries from every stride-th on: [batch, windows, 4]."""
  time = x.shape[1]
  padded = jnp.pad(x, ((0, 0), (0, N - 1)), constant_values=fill)
  return jnp.stack([padded[:, i:time + i:stride] for i in range(N)], axis=-1)


def _truth(batch, stride: int) -> jax.Array:
  """The tokens that follow in the same document, -1 after its end."""
  targets, ids = _following(batch['targets'], stride, -1), _following(batch['segment_ids'], stride, 0)
  here = jnp.cumprod((ids == ids[..., :1]) & (ids > 0) & (targets >= 0), axis=-1, dtype=jnp.int32)
  return jnp.where(here, targets, -1)


def _chunk_truth(batch, chunk: int) -> jax.Array:
  """What follows each chunk, where the first token after it is of the document of the chunk's first: only those are learned."""
  here = batch['segment_ids'][:, ::chunk]
  goes_on = jnp.pad(here[:, 1:], ((0, 0), (0, 1))) == here   # the row's last chunk is followed by nothing
  ends = {name: batch[name][:, chunk - 1:] for name in ('targets', 'segment_ids')}
  return jnp.where(goes_on[..., None], _truth(ends, chunk), -1)


# The measure.


@dataclasses.dataclass(frozen=True)
class BrierLM:
  """BrierLM over a split, its four factors, and a 95% interval.

  split, every, max_tokens, final_max_tokens: as in HeldOut.
  form: 'sampled' (two samples of every window, as for a model without probabilities) | 'exact' (a causal LM's probabilities) | 'auto' (exact
    where there are any).
  stride: windows begin at every stride-th token; K puts a causal LM on the windows of a model that draws K tokens at a time.
  seed: of the draws and of the interval.
  """
  split: str = 'valid'
  every: int = 0
  max_tokens: int | None = None
  final_max_tokens: int | None = None
  form: str = 'auto'
  stride: int = 1
  seed: int = 0

  def __post_init__(self):
    if self.form not in FORMS:
      raise ValueError(f'BrierLM: form={self.form!r} is not one of {", ".join(FORMS)}')
    if self.stride < 1:
      raise ValueError(f'BrierLM: stride={self.stride} must be at least 1')

  def run(self, experiment, mesh, params, final: bool) -> dict[str, float]:
    """brierlm, its interval's ends low and high, brier_1 ... brier_4 (in 0 to 1, estimates may be below 0), windows.

    The interval is a percentile bootstrap over rows of the data: rows are read from a fresh state, windows of one row overlap.
    """
    data, key = experiment.data, jax.random.key(self.seed)
    score = _scores(experiment.model, self._form(experiment), self.stride, data.length, mesh)
    limit = self.final_max_tokens if final else self.max_tokens
    found = [score(params, place(batch, mesh, data.batch_size), jax.random.fold_in(key, index))
             for index, batch in enumerate(data.eval_batches(self.split, limit, share(mesh, data.batch_size)))]
    sums, counts = (np.concatenate([np.asarray(x, np.float64) for x in part]) for part in zip(*found))
    if not counts[:, -1].any():
      raise ValueError(f'BrierLM: the split {self.split!r} has no document with {N} tokens to predict in a row')
    brier = sums.sum(axis=0) / counts.sum(axis=0)
    low, high = interval(sums, counts, self.seed)
    return dict(brierlm=float(brierlm(brier)), low=low, high=high, **{f'brier_{n + 1}': float(brier[n]) for n in range(N)},
                windows=int(counts[:, 0].sum()))

  def _form(self, experiment) -> str:
    model = experiment.model
    if not hasattr(model, 'init_state') or experiment.data.targets_are != 'next tokens':
      raise ValueError(f'BrierLM: {type(model).__name__} does not continue a text')
    if not hasattr(model, 'draw'):
      return 'exact' if self.form == 'auto' else self.form
    if self.form == 'exact' or self.stride != 1:
      raise ValueError(f'BrierLM: {type(model).__name__} draws chunks: form={self.form!r} must be sampled or auto, and stride={self.stride} 1')
    return 'sampled'


def interval(sums: np.ndarray, counts: np.ndarray, seed: int = 0, share: float = 0.95, replicates: int = 1000) -> tuple[float, float]:
  """Ends of the percentile bootstrap interval of BrierLM over rows.  sums, counts: [rows, 4], of each Brier-n."""
  sums, counts = sums[counts[:, 0] > 0], counts[counts[:, 0] > 0]
  times = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=replicates)
  scores = brierlm((times @ sums) / np.maximum(times @ counts, 1))
  return tuple(float(x) for x in np.quantile(scores, [(1 - share) / 2, (1 + share) / 2]))


@functools.lru_cache(maxsize=8)
def _scores(model, form: str, stride: int, time: int, mesh):
  """(params, batch, key) -> (sums, counts), both [rows, 4], compiled once per model."""
  def score(params, batch, key):
    params = turned(params)
    if form == 'exact':
      brier, truth = exact(ready, params, batch, key, stride)
    else:
      windows = sampled(ready, params, batch, key, stride)
      brier, truth = estimate(windows), windows.truth
    here = jnp.cumprod(truth >= 0, axis=-1, dtype=jnp.int32)
    return jnp.sum(jnp.where(here, brier, 0), axis=1), jnp.sum(here, axis=1)
  ready, turned = model.for_generation(_room(model, time))   # long filters once, not at every token
  compiled = jax.jit(score, out_shardings=meshes.replicated(mesh))

  def run(params, batch, key):
    with meshes.use(mesh):
      return compiled(params, batch, key)
  return run
