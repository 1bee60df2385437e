"""Beside the PyTorch peers, in one run on this machine: the same weights here and there, training, prefill and decoding.

Peers: transformers' implementations, and the `rwkv` package for decoding with RWKV-4 and RWKV-7.  Both sides use every core that the
process may use, float32, and no recomputation in the backward pass; ours without a loop over layers.  Needs the extra: pip install 'ssmlab[peers]'.
"""

import argparse
import contextlib
import dataclasses
import importlib
import io
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab import bench
from ssmlab.core.config import UserError
from ssmlab.core import mesh as meshes
from ssmlab.core.params import init
from ssmlab.eval.generate import stream
from ssmlab.interop.pretrained import export, load_pretrained
from ssmlab.models.stack import unstacked
from ssmlab.tasks import MaskedLM, NextToken
from ssmlab.train.optimizer import AdamW
from ssmlab.train.step import Trainer

USES = ('training', 'prefill', 'decoding')

MASKED = 0.15                                                # share of the tokens that an encoder's training step hides

# transformers' classes, the argument that takes the state back (None: an encoder), and what their config calls our sizes.
PEERS = {
    'RWKV-4': ('Rwkv', 'state', lambda width, depth: dict(context_length=4096)),
    'Mamba': ('Mamba', 'cache_params', lambda width, depth: {}),
    'Mamba-2': ('Mamba2', 'cache_params', lambda width, depth: dict(num_heads=2 * width // 64, head_dim=64, n_groups=1)),
    'RecurrentGemma': ('RecurrentGemma', 'past_key_values', lambda width, depth: dict(
        num_attention_heads=width // 64, intermediate_size=6 * width, lru_width=width)),
    'BERT': ('Bert', None, lambda width, depth: dict(
        num_attention_heads=width // 64, intermediate_size=4 * width, max_position_embeddings=4096, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)),
    'GPT-2': ('GPT2', 'past_key_values', lambda width, depth: dict(
        num_attention_heads=width // 64, n_positions=4096, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
    'Llama': ('Llama', 'past_key_values', lambda width, depth: dict(num_attention_heads=width // 64, intermediate_size=8 * width // 3 // 32 * 32)),
}
PACKAGE = {'RWKV-4 (rwkv package)': ('rwkv4-pth', '0'), 'RWKV-7 (rwkv package)': ('rwkv7', '1')}    # format, RWKV_V7_ON


@dataclasses.dataclass(frozen=True)
class Sizes:
  """width, depth: of every model, vocabulary 256.  batch, length: of a training step and of prefill.  new: tokens decoded at batch 1."""
  width: int = 256
  depth: int = 4
  batch: int = 4
  length: int = 512
  new: int = 64

  def __post_init__(self):
    if self.depth < 3:
      raise UserError(f'--depth {self.depth} is below 3: transformers cannot decode with a RecurrentGemma without an attention layer')


def run(systems: Iterable[str], sizes: Sizes, repeats: int = 4, budget: float = 60.0) -> Iterator[bench.Row]:
  """Yields one row per system and use: tokens per second there and here, their ratio, and the largest difference of the logits.

  difference: largest absolute difference over the largest logit, on random tokens.  budget: seconds after which a peer's call is not
  repeated.  The `rwkv` package reads one sequence at a time, without batches, and does not train.  An encoder's prefill is its logits of all
  tokens; in its training step our head is computed on the masked tokens, theirs on all.
  """
  for system in systems:
    with tempfile.TemporaryDirectory() as folder:
      theirs, ours = (_package if system in PACKAGE else _transformers)(system, sizes, pathlib.Path(folder))
    ids = np.random.default_rng(0).integers(1, 256, (1 if system in PACKAGE else sizes.batch, sizes.length)).astype(np.int32)
    there, here = theirs.logits(ids[:, :64]), ours.logits(ids[:, :64])
    difference = float(np.max(np.abs(there - here)) / np.max(np.abs(there)))
    for use in USES:
      if not hasattr(theirs, use):
        continue
      tokens = sizes.new if use == 'decoding' else ids.size
      ids_of_use = ids[:1] if use == 'decoding' else ids
      pair = [getattr(side, use)(ids_of_use, sizes.new) for side in (theirs, ours)]
      there, here = (tokens / seconds for seconds in _seconds(*pair, repeats, budget))
      yield dict(system=system, use=use, theirs=there, ours=here, ratio=here / there, difference=difference)


def _seconds(theirs: Callable[[], Any], ours: Callable[[], Any], repeats: int, budget: float) -> tuple[float, float]:
  """Shortest seconds of a call of either; where theirs takes longer than the budget, its first and only one counts."""
  begin = time.perf_counter()
  theirs()
  first = time.perf_counter() - begin
  if first > budget:
    return first, bench.seconds(ours, repeats)
  taken = bench.in_turns(dict(theirs=theirs, ours=ours), max(min(repeats, int(budget / first)), 1), calls=3, pause=0.3)
  return taken['theirs'], taken['ours']


class Ours:
  """The lab's model on the peer's weights.  Each use: (ids [batch, time], tokens to decode) -> an action to be timed."""

  def __init__(self, model, params):
    self.model, self.params = unstacked(dataclasses.replace(model, remat='none'), params)

  def logits(self, ids):
    return np.asarray(jax.jit(self.model.apply)(self.params, jnp.asarray(ids))[0])

  def lesson(self, ids):
    """(task, batch)."""
    targets = np.concatenate([ids[:, 1:], np.full_like(ids[:, :1], -1)], axis=1)
    return NextToken(), dict(tokens=ids, targets=targets, segment_ids=np.ones_like(ids))

  def training(self, ids, new):
    task, batch = self.lesson(ids)
    optim = AdamW(peak_lr=1e-3, weight_decay=0.1, clip=0.0)
    trainer = Trainer(self.model, task, optim.transform(self.model.params(), 1000), meshes.make(devices=jax.devices()[:1]),
                      optim.schedule(1000))
    params = jax.device_put(jax.tree.map(jnp.copy, self.params), trainer.shardings().params)
    step, carried = trainer.compiled(), [trainer.fresh(0).replace(params=params)]

    def action():
      carried[0], measured = step(carried[0], batch)
      return measured
    return action

  def prefill(self, ids, new):
    state = self.model.init_state(len(ids), ids.shape[1])

    def read(params, state, ids):
      x, state = self.model.hidden(params, ids, state)
      return self.model.logits(params, x[:, -1]), state
    read = jax.jit(read)
    return lambda: read(self.params, state, ids)

  def decoding(self, ids, new):
    state = self.model.init_state(1, ids.shape[1] + new)
    state = jax.jit(self.model.hidden)(self.params, jnp.asarray(ids), state)[1]
    return lambda: [token for token, _ in stream(self.model, self.params, [[]], new, temperature=0.0, state=state)]


class OurEncoder(Ours):
  """An encoder: learns masked words, reads whole documents."""

  def logits(self, ids):
    return np.asarray(jax.jit(lambda params, ids: self.model.logits(params, self.model.hidden(params, ids)[0]))(self.params, jnp.asarray(ids)))

  def lesson(self, ids):
    words = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    return MaskedLM(mask=1, ratio=MASKED), dict(tokens=ids, targets=ids, segment_ids=np.ones_like(ids), words=words)

  def prefill(self, ids, new):
    read = jax.jit(lambda params, ids: self.model.logits(params, self.model.hidden(params, ids)[0]))
    return lambda: read(self.params, ids)


def _transformers(system: str, sizes: Sizes, folder: pathlib.Path):
  import torch
  import transformers
  name, carried, options = PEERS[system]
  torch.manual_seed(0)
  config = getattr(transformers, f'{name}Config')(
      vocab_size=256, hidden_size=sizes.width, num_hidden_layers=sizes.depth, bos_token_id=0, eos_token_id=0, pad_token_id=0,
      **options(sizes.width, sizes.depth))
  auto = transformers.AutoModelForCausalLM if carried else transformers.AutoModelForMaskedLM
  net = auto.from_config(config)
  net.save_pretrained(folder)
  model, params, _ = load_pretrained(folder)
  return (Transformers(net, carried), Ours(model, params)) if carried else (Encoder(net), OurEncoder(model, params))


class Encoder:
  """One of transformers' models that read both ways."""

  def __init__(self, net):
    self.net = net

  def logits(self, ids):
    import torch
    self.net.eval()
    with torch.inference_mode():
      return self.net(torch.as_tensor(ids, dtype=torch.long)).logits.numpy()

  def prefill(self, ids, new):
    return lambda: self.logits(ids)

  def error(self, ids):
    """Cross entropy of the masked words, over a random share of the tokens."""
    import torch
    chosen = torch.rand(ids.shape) < MASKED
    logits = self.net(torch.where(chosen, 1, ids)).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.where(chosen, ids, -100).flatten())

  def training(self, ids, new):
    import torch
    ids = torch.as_tensor(ids, dtype=torch.long)
    self.net.train()
    optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def action():
      loss = self.error(ids)
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
      return loss.item()
    return action


class Transformers(Encoder):
  """One of transformers' causal models; `carried` names the argument and output field of its decoding state."""

  def __init__(self, net, carried: str):
    super().__init__(net)
    self.carried = carried

  def logits(self, ids):
    import torch
    self.net.eval()
    with torch.inference_mode():
      return self.net(torch.as_tensor(ids, dtype=torch.long), use_cache=False).logits.numpy()

  def error(self, ids):
    import torch
    logits = self.net(ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

  def _read(self, ids, state=None):
    import transformers
    if state is None and self.carried == 'past_key_values':
      state = transformers.DynamicCache(config=self.net.config)                    # filled in place; RecurrentGemma does not return it
    out = self.net(ids, use_cache=True, **{self.carried: state})
    return out.logits[:, -1], getattr(out, self.carried, state)

  def prefill(self, ids, new):
    import torch
    ids = torch.as_tensor(ids, dtype=torch.long)
    self.net.eval()

    def action():
      with torch.inference_mode():
        return self._read(ids)[0].numpy()
    return action

  def decoding(self, ids, new):
    import torch
    self.net.eval()
    with torch.inference_mode():
      carried = list(self._read(torch.as_tensor(ids, dtype=torch.long)))           # goes on from call to call: one token costs the same

    def action():
      with torch.inference_mode():
        for _ in range(new):
          carried[:] = self._read(carried[0].argmax(-1, keepdim=True), carried[1])
      return carried[0].numpy()
    return action


def _package(system: str, sizes: Sizes, folder: pathlib.Path):
  import torch
  from ssmlab.models.presets import rwkv
  form, seventh = PACKAGE[system]
  preset = rwkv.rwkv7('0.1B') if seventh == '1' else rwkv.rwkv4('169M')
  block = dataclasses.replace(preset.pattern[0], channel=dataclasses.replace(preset.pattern[0].channel, hidden=4 * sizes.width))
  model = dataclasses.replace(preset, vocab=256, width=sizes.width, depth=sizes.depth, pattern=(block,))
  params = init(jax.random.key(0), model.params())
  params = jax.tree.map(lambda a: a + 0.02 * jax.random.normal(jax.random.key(a.size), a.shape), params)     # many begin at zero
  file = folder / 'model.pth'
  torch.save({key: torch.from_numpy(np.array(value)) for key, value in export(model, params, form).items()}, file)
  os.environ |= dict(RWKV_V7_ON=seventh, RWKV_JIT_ON='1', RWKV_CUDA_ON='0')
  sys.modules.pop('rwkv.model', None)                                              # it chooses its class when imported
  with contextlib.redirect_stdout(io.StringIO()):                                  # it lists every tensor
    peer = importlib.import_module('rwkv.model').RWKV(str(file.with_suffix('') if seventh == '1' else file), 'cpu fp32')
  return Package(peer), Ours(model, params)


class Package:
  """A model of the `rwkv` package: one sequence at a time."""

  def __init__(self, net):
    self.net = net

  def _read(self, ids, state=None, full=False):
    import torch
    with torch.inference_mode():
      return self.net.forward([int(i) for i in ids], state, full)

  def logits(self, ids):
    return self._read(ids[0], full=True)[0].numpy()[None]

  def prefill(self, ids, new):
    return lambda: self._read(ids[0])[0].numpy()

  def decoding(self, ids, new):
    carried = list(self._read(ids[0]))

    def action():
      for _ in range(new):
        carried[:] = self._read([carried[0].argmax()], carried[1])
      return carried[0].numpy()
    return action


def main(argv: Sequence[str] | None = None) -> None:
  names = (*PEERS, *PACKAGE)
  parser = argparse.ArgumentParser(prog='ssmlab bench peers', description=__doc__)
  parser.add_argument('systems', nargs='*', help=f'of: {", ".join(names)} (default: all)')
  for field in dataclasses.fields(Sizes):
    parser.add_argument(f'--{field.name}', type=int, default=field.default, help='default %(default)s')
  parser.add_argument('--repeats', type=int, default=4, help='turns of three calls each, of which the fastest counts, default %(default)s')
  parser.add_argument('--budget', type=float, default=60.0, help="seconds after which a peer's call is not repeated, default %(default)s")
  parser.add_argument('-o', '--output', help='also write the table here, .json or .csv')
  options = parser.parse_args(argv)
  path = bench.table_path(options.output) if options.output else None
  if unknown := [name for name in options.systems if name not in names]:
    raise UserError(f'system {unknown[0]!r} is not one of {", ".join(names)}')
  try:
    import rwkv  # noqa: F401
    import torch
    import transformers
  except ImportError as error:
    raise UserError(f"bench peers needs PyTorch, transformers and rwkv (pip install 'ssmlab[peers]'): {error}") from error
  transformers.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  rows = []
  for row in run(options.systems or names, Sizes(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Sizes)}), options.repeats, options.budget):
    rows.append(row)
    print(f"{row['system']}, {row['use']}: {row['ratio']:.2f}", file=sys.stderr, flush=True)
  print(bench.table(rows))
  print(f'tokens per second; {torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}, jax {jax.__version__}')
  if path:
    bench.write(path, rows)


if __name__ == '__main__':
  main()
