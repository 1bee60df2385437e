"""Generation: the carried state against the full forward, ragged prompts, sampling, stops, sessions as files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmlab
from ssmlab.core.config import UserError
from ssmlab.data import Bytes
from ssmlab.eval.generate import Sampling, stream
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.rglru import RGLRU

MODEL = ssmlab.LM(vocab=256, width=16, pattern=(RGLRU(16, 2), Attention(2, 8)), depth=2, channel=GatedMLP(24), embedding=Embedding(size=1.0))
PARAMS = ssmlab.init(jax.random.key(0), MODEL.params())
PROMPT = [[3, 1, 4, 1, 5], [9, 2]]
FULL = jax.jit(MODEL.apply)


def greedy_by_full_forward(prompt, new):
  """The definition: the whole sequence again for every token (padded on the right, where a causal model cannot look)."""
  tokens = list(prompt)
  for _ in range(new):
    padded = jnp.array([tokens + [0] * (24 - len(tokens))])
    tokens.append(int(jnp.argmax(FULL(PARAMS, padded)[0][0, len(tokens) - 1])))
  return tokens[len(prompt):]


def test_greedy_equals_the_full_forward_for_ragged_prompts():
  tokens, _ = ssmlab.generate(MODEL, PARAMS, PROMPT, 9, temperature=0)
  assert tokens.dtype == np.int32 and tokens.tolist() == [greedy_by_full_forward(p, 9) for p in PROMPT]


def test_state_continues_where_the_call_ended(tmp_path):
  """In two calls, the second with an empty prompt, with new text, and from a file: as in one."""
  whole, _ = ssmlab.generate(MODEL, PARAMS, PROMPT, 9, temperature=0)
  first, state = ssmlab.generate(MODEL, PARAMS, PROMPT, 4, temperature=0, max_length=30)
  ssmlab.save_state(tmp_path / 's', state, model=MODEL, tokenizer=Bytes())
  second, _ = ssmlab.generate(MODEL, PARAMS, [[], []], 5, temperature=0, state=state)
  assert np.concatenate([first, second], axis=1).tolist() == whole.tolist()
  loaded = ssmlab.load_state(tmp_path / 's', model=MODEL, tokenizer=Bytes())
  assert (ssmlab.generate(MODEL, PARAMS, [[], []], 5, temperature=0, state=loaded)[0] == second).all()
  more, _ = ssmlab.generate(MODEL, PARAMS, [[7, 7], [8]], 3, temperature=0, state=loaded)
  assert more[0].tolist() == greedy_by_full_forward([*PROMPT[0], *first[0].tolist(), 7, 7], 3)


def test_session_files_refuse_what_does_not_belong(tmp_path):
  state = MODEL.init_state(batch=1, max_length=4)
  ssmlab.save_state(tmp_path / 's', state, model=MODEL)
  with pytest.raises(UserError, match='another model'):
    ssmlab.load_state(tmp_path / 's', model=dataclasses.replace(MODEL, depth=4))
  with pytest.raises(UserError, match='another tokenizer'):
    ssmlab.load_state(tmp_path / 's', tokenizer=Bytes())
  with pytest.raises(UserError, match='cannot be read'):
    ssmlab.load_state(tmp_path / 'absent')
  (tmp_path / 'text').write_text('x' * 100)
  with pytest.raises(UserError, match='cannot be read'):
    ssmlab.load_state(tmp_path / 'text')
  with pytest.raises(UserError, match='could not be written'):
    ssmlab.save_state(tmp_path / 'no' / 'folder', state, model=MODEL)


def test_streaming_is_the_same_tokens():
  options = dict(temperature=0.9, top_p=0.8, key=jax.random.key(5))
  whole, _ = ssmlab.generate(MODEL, PARAMS, PROMPT, 6, **options)
  assert [t.tolist() for t, _ in stream(MODEL, PARAMS, PROMPT, 6, **options)] == whole.T.tolist()
  assert (ssmlab.generate(MODEL, PARAMS, PROMPT, 6, **dict(options, key=jax.random.key(6)))[0] != whole).any()


def test_stop_ends_a_row_and_the_call():
  tokens, _ = ssmlab.generate(MODEL, PARAMS, PROMPT[:1], 9, temperature=0)
  stop = int(tokens[0, 2])
  stopped, _ = ssmlab.generate(MODEL, PARAMS, PROMPT[:1], 9, temperature=0, stop=(stop,))
  first = tokens[0].tolist().index(stop)
  assert stopped[0].tolist() == tokens[0, :first + 1].tolist()
  both, _ = ssmlab.generate(MODEL, PARAMS, PROMPT, 9, temperature=0, stop=(stop,))
  assert set(both[0, first:].tolist()) == {stop}


@pytest.mark.parametrize('sampling, kept', [(Sampling(1.0, top_k=2), {0, 1}), (Sampling(1.0, top_p=0.6), {0, 1}), (Sampling(1.0, top_p=0.4), {0}),
                                            (Sampling(0.0), {0}), (Sampling(1.0, top_k=3, top_p=0.99), {0, 1, 2}), (Sampling(1.0), {0, 1, 2, 3})])
def test_sampling_draws_from_the_kept_with_their_shares(sampling, kept):
  """Probabilities 0.5, 0.3, 0.15, 0.05: 4000 draws against the renormalised law, within five standard deviations."""
  law = np.array([0.5, 0.3, 0.15, 0.05])
  logits = jnp.broadcast_to(jnp.log(law), (4000, 4))
  counts = np.bincount(sampling.draw(jax.random.key(0), logits), minlength=4)
  expected = np.array([law[i] if i in kept else 0.0 for i in range(4)])
  expected /= expected.sum()
  assert set(np.flatnonzero(counts)) == kept
  assert (np.abs(counts - 4000 * expected) <= 5 * np.sqrt(4000 * expected * (1 - expected))).all()


@pytest.mark.parametrize('call, message', [
    (lambda: ssmlab.generate(MODEL, PARAMS, PROMPT, 0), 'max_new_tokens=0'),
    (lambda: ssmlab.generate(MODEL, PARAMS, [1, 2], 3), 'batch, time'),
    (lambda: ssmlab.generate(MODEL, PARAMS, [[]], 3), 'a prompt of 0 tokens and no state'),
    (lambda: ssmlab.generate(MODEL, PARAMS, [[256]], 3), 'vocabulary of 256'),
    (lambda: ssmlab.generate(MODEL, PARAMS, PROMPT, 3, top_p=0.0), 'top_p=0.0'),
    (lambda: ssmlab.generate(MODEL, PARAMS, PROMPT, 3, temperature=-1), 'temperature=-1'),
    (lambda: ssmlab.generate(MODEL, PARAMS, PROMPT, 3, state=MODEL.init_state(batch=1, max_length=9)), 'state is of 1'),
    (lambda: ssmlab.generate(MODEL, PARAMS, PROMPT, 30, state=MODEL.init_state(batch=2, max_length=9)), 'more than the 9 that the state has room for')])
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_a_new_state_with_room_still_needs_a_prompt():
  """max_length makes the state; an empty prompt has nothing to go on from all the same."""
  with pytest.raises(ValueError, match='a prompt of 0 tokens and no state'):
    ssmlab.generate(MODEL, PARAMS, [[]], 2, max_length=8)


def test_windowed_attention_alone_reads_on_for_ever():
  """Its cache is a ring: what is written beyond the window bounds nothing; a cache smaller than the window does."""
  model = dataclasses.replace(MODEL, pattern=(Attention(2, 8, window=4),))
  params = ssmlab.init(jax.random.key(0), model.params())
  whole, _ = ssmlab.generate(model, params, PROMPT, 12, temperature=0)
  first, state = ssmlab.generate(model, params, PROMPT, 5, temperature=0)
  assert (np.concatenate([first, ssmlab.generate(model, params, [[], []], 7, temperature=0, state=state)[0]], axis=1) == whole).all()
  with pytest.raises(ValueError, match='more than the 3 that the state has room for'):
    ssmlab.generate(model, params, PROMPT, 2, state=model.init_state(2, 3))
