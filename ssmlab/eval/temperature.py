"""Sampling at a temperature below 1 from a law that can only be sampled: P(x)^(1/T) / Z.  CALM, arXiv 2510.27688, algorithms 1 and 2.

An outcome is whatever `draw` returns: a token, or CALM's chunk of K tokens, so that T acts on the law of chunks.
Algorithm 1 is exact: floor(1/T) equal draws, then a Bernoulli factory for the fraction (Mendo, arXiv 1612.08923).  The authors' repository
does not hold it (shaochenze/calm has algorithm 2 only, models/modeling_calm.py, temperature_sampling).
Algorithm 2 counts what repeats among N draws: biased at finite N, T = 1/n only.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

Draw = Callable[[jax.Array], jax.Array]                      # key -> one outcome, an array of any fixed shape


def powers(temperature: float) -> tuple[int, float]:
  """(n, a) with 1/T = n + a, n whole, 0 <= a < 1.  Raises ValueError for T outside (0, 1]."""
  if not 0 < temperature <= 1:
    raise ValueError(f'temperature={temperature} must be above 0 and at most 1')
  inverse = 1 / temperature
  n = math.floor(inverse + 1e-9)                             # 1/T of a decimal fraction is rarely whole in binary
  return n, 0.0 if inverse - n < 1e-9 else inverse - n


def equal_draws(draw: Draw, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
  """One round of n draws: (the first of them, whether all are equal).  x comes with all equal with probability P(x)^n."""
  drawn = jax.vmap(draw)(jax.random.split(key, n))
  return drawn[0], jnp.all(drawn == drawn[0])


def bernoulli_factory(draw: Draw, key: jax.Array, candidate: jax.Array, a: float) -> tuple[jax.Array, jax.Array]:
  """(True with probability P(candidate)^a, draws used), for 0 < a < 1 and without knowing P.

  The i-th draw that is not the candidate ends it with probability a / i: p sum_k (1-p)^k prod_{j<=k} (1 - a/j) = p p^(a-1).
  """
  def again(carry):
    return ~carry[1] & ~carry[2]

  def step(carry):
    draws, _, _ = carry
    key_draw, key_stop = jax.random.split(jax.random.fold_in(key, draws))
    hit = jnp.all(draw(key_draw) == candidate)
    stop = ~hit & (jax.random.uniform(key_stop) < a / (draws + 1))
    return draws + 1, hit, stop
  draws, hit, _ = jax.lax.while_loop(again, step, (jnp.int32(0), jnp.bool_(False), jnp.bool_(False)))
  return hit, draws


def exact(draw: Draw, key: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
  """(outcome with probability P(x)^(1/T) / Z, int32 draws used), for any T in (0, 1].  Algorithm 1.

  Can be jitted and mapped over keys.  It ends with probability 1, after `expected_draws` draws on average, which nothing bounds: for a law
  spread over many outcomes see `estimated_draws` first.
  """
  n, a = powers(temperature)

  def one_round(carry):
    _, draws, _, count = carry
    key_equal, key_factory = jax.random.split(jax.random.fold_in(key, count))
    candidate, accepted = equal_draws(draw, key_equal, n)
    draws += n
    if a:
      passed, more = jax.lax.cond(accepted, lambda: bernoulli_factory(draw, key_factory, candidate, a), lambda: (jnp.bool_(False), jnp.int32(0)))
      accepted, draws = passed, draws + more
    return candidate, draws, accepted, count + 1
  like = jax.eval_shape(draw, key)
  start = jnp.zeros(like.shape, like.dtype), jnp.int32(0), jnp.bool_(False), jnp.int32(0)
  outcome, draws, _, _ = jax.lax.while_loop(lambda carry: ~carry[2], one_round, start)
  return outcome, draws


def counting_logits(outcomes: jax.Array, n: int) -> jax.Array:
  """Log weights, float32 [N], of choosing each of N draws so that outcome x is taken in proportion to binom(c_x, m).  Algorithm 2, T = 1/n.

  outcomes: [N, ...].  c_x: how often x was drawn; m: the largest number <= n that some outcome reaches.  Raises ValueError for n < 1.
  The paper chooses among distinct outcomes; choosing a draw of weight binom(c, m) / c is the same law without hashing.
  """
  if n < 1:
    raise ValueError(f'n={n} must be at least 1')
  flat = outcomes.reshape(len(outcomes), -1)
  counts = jnp.sum(jnp.all(flat[:, None] == flat[None], axis=-1), axis=1)
  m = jnp.minimum(n, jnp.max(counts))
  j = jnp.arange(min(n, len(outcomes)))
  factors = jnp.log(jnp.maximum(counts[:, None] - j, 1).astype(jnp.float32))
  binomial = jnp.sum(jnp.where(j < m, factors, 0), axis=1)   # up to log m!, the same for all
  return jnp.where(counts >= m, binomial - jnp.log(counts.astype(jnp.float32)), -jnp.inf)


def counting(outcomes: jax.Array, key: jax.Array, n: int) -> jax.Array:
  """One of the outcomes [N, ...], approximately at temperature 1/n.  Exact as N grows; the authors take N = 200."""
  return outcomes[jax.random.categorical(key, counting_logits(outcomes, n))]


@dataclasses.dataclass(frozen=True)
class Chunks:
  """A CALM's next chunk at a temperature, the `draw` of eval.generate: (model, params, x [batch, width], key) -> int32 [batch, K].

  samples: N of `counting` (the authors' 200), for T = 1/n; 0: `exact`, for any T in (0, 1], however long it takes.
  """
  temperature: float = 0.5
  samples: int = 200

  def __post_init__(self):
    _, a = powers(self.temperature)
    if a and self.samples:
      raise ValueError(f'Chunks: temperature={self.temperature} with samples={self.samples} must be 1/n; samples=0 takes any')

  def __call__(self, model, params, x: jax.Array, key: jax.Array) -> jax.Array:
    n, a = powers(self.temperature)
    if n == 1 and not a:
      return model.draw(params, x, key)

    def one(x, key):
      if not self.samples:
        return exact(lambda key: model.draw(params, x, key), key, self.temperature)[0]
      key_draw, key_choice = jax.random.split(key)
      return counting(model.draw(params, jnp.broadcast_to(x, (self.samples, *x.shape)), key_draw), key_choice, n)
    return jax.vmap(one)(x, jax.random.split(key, len(x)))


# What it gives and what it costs, where the law is known; float64.


def target(probabilities: np.ndarray, temperature: float) -> np.ndarray:
  """P^(1/T) / Z."""
  raised = np.asarray(probabilities, np.float64) ** (1 / temperature)
  return raised / raised.sum()


def acceptance(probabilities: np.ndarray, temperature: float) -> float:
  """Z = sum P^(1/T): the probability that a round of `exact` returns something."""
  return float(np.sum(np.asarray(probabilities, np.float64) ** (1 / temperature)))


def expected_draws(probabilities: np.ndarray, temperature: float) -> float:
  """Mean number of draws of `exact`: (n + [a > 0] sum P^(1/T - 1)) / Z."""
  n, a = powers(temperature)
  p = np.asarray(probabilities, np.float64)
  p = p[p > 0]
  return float(n + (np.sum(p ** (1 / temperature - 1)) if a else 0)) / acceptance(p, temperature)


def estimated_draws(outcomes: np.ndarray, n: int) -> float:
  """Mean number of draws of `exact` at T = 1/n from N draws of an unknown law; infinite where no outcome came n times.

  n over the unbiased estimate of Z: the share of n-subsets of the draws whose members are equal.  outcomes: [N, ...], N >= n.
  """
  _, counts = np.unique(np.asarray(outcomes).reshape(len(outcomes), -1), axis=0, return_counts=True)
  equal = sum(math.comb(int(count), n) for count in counts)
  return n * math.comb(len(outcomes), n) / equal if equal else math.inf


def draws(model, params, batches: Iterable[Mapping[str, np.ndarray]], samples: int = 200, contexts: int = 64, most: int = 4) -> list[dict[str, float]]:
  """What `exact` would cost a trained CALM: one row per temperature 1/n, n = 2 .. most.

  batches: dicts with int32 tokens and segment_ids [batch, time]; the first gives the contexts, evenly spread.
  samples: draws of the next chunk per context, from which `estimated_draws` estimates.
  Columns: temperature; median and mean of the draws per chunk over the contexts where one is known; unknown: the share of contexts in which
  no chunk came n times, so that more than the samples would be needed to know.
  """
  batch = next(iter(batches))
  x, _ = jax.jit(lambda params, tokens, ids: model.hidden(params, tokens, None, ids))(params, batch['tokens'], batch['segment_ids'])
  x = x[batch['segment_ids'][:, ::model.chunk] > 0]
  x = x[np.linspace(0, len(x) - 1, min(contexts, len(x))).astype(int)]
  one = jax.jit(lambda params, key: model.draw(params, x, key))
  drawn = np.stack([one(params, key) for key in jax.random.split(jax.random.key(0), samples)], axis=1)
  rows = []
  for n in range(2, most + 1):
    each = np.array([estimated_draws(outcomes, n) for outcomes in drawn])
    known = each[np.isfinite(each)]
    rows.append(dict(temperature=1 / n, median=float(np.median(known)) if len(known) else math.nan, mean=float(known.mean()) if len(known) else math.nan,
                     unknown=1 - len(known) / len(each)))
  return rows
