"""Mamba and Mamba-2, in Hugging Face's layout (transformers, models/mamba and models/mamba2) and the authors' (state-spaces/mamba).

The two layouts differ in the config and in one key.  What a config leaves out has that code's defaults.
"""

import functools
import math

import numpy as np

from ssmlab.core.config import UserError
from ssmlab.interop import fields
from ssmlab.interop.mapping import DEPTHWISE, LAST_TWO, SAME, TRANSPOSED, Format, Rule, Turn
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.mamba1 import Mamba1
from ssmlab.mixers.mamba2 import Mamba2
from ssmlab.models.lm import LM, Block

HF_TABLE, OWN_TABLE = 'backbone.embeddings.weight', 'backbone.embedding.weight'
MARK = {Mamba1: 'backbone.layers.0.mixer.dt_proj.weight', Mamba2: 'backbone.layers.0.mixer.dt_bias'}
KIND = {Mamba1: 'mamba', Mamba2: 'mamba2'}


def _recognise_hf(mixer: type, config, tensors) -> bool:
  said = (config or {}).get('model_type')
  return said == KIND[mixer] or said is None and HF_TABLE in tensors and MARK[mixer] in tensors


def _limits(config: dict) -> tuple[float, float | None]:
  """time_step_limit: a pair of numbers, of their texts, or of transformers 5's {'__float__': 'Infinity'}."""
  number = lambda value: float(value['__float__'] if isinstance(value, dict) else value)
  lowest, highest = map(number, config.get('time_step_limit') or (0.0, math.inf))
  return lowest, None if math.isinf(highest) else highest


def _mixer_hf(mixer: type, config: dict, width: int):
  common = dict(expand=config.get('expand', 2), conv_width=config.get('conv_kernel', 4), bias=bool(config.get('use_bias', False)),
                conv_bias=bool(config.get('use_conv_bias', True)))
  fields.only(config, 'hidden_act', 'silu', 'swish')
  if mixer is Mamba1:
    rank = config.get('time_step_rank', 'auto')
    return Mamba1(state=config.get('state_size', 16), rank=None if rank == 'auto' else rank, **common)
  fields.only(config, 'rms_norm', True)
  head_dim, (lowest, highest) = config.get('head_dim', 64), _limits(config)
  heads = config.get('num_heads', 128)
  if heads * head_dim != common['expand'] * width:
    raise UserError(f'config: num_heads={heads} times head_dim={head_dim} is not expand * hidden_size = {common["expand"] * width}')
  return Mamba2(head_dim=head_dim, state=config.get('state_size', 128), groups=config.get('n_groups', 8), dt_lowest=lowest,
                dt_highest=highest, eps=config.get('layer_norm_epsilon', 1e-5), **common)


def _model_hf(mixer: type, config, tensors) -> LM:
  old = mixer is Mamba1
  width = config.get('hidden_size', 768 if old else 4096)
  tied = fields.tied(config, tensors, old, HF_TABLE, 'lm_head.weight')
  return _network(_mixer_hf(mixer, config, width), config.get('vocab_size', 50280 if old else 32768), width,
                  config.get('num_hidden_layers', 32 if old else 64), config.get('layer_norm_epsilon', 1e-5), tied)


def _network(mixer, vocab: int, width: int, depth: int, eps: float, tied: bool) -> LM:
  return LM(vocab=vocab, width=width, depth=depth, pattern=(Block(mixer),), norm=RMSNorm(eps), embedding=Embedding(), head=Head(tied=tied))


def _only_mixer(model: LM, *allowed: type):
  kinds = {type(block.mixer) for block in model.blocks}
  if len(kinds) > 1 or not kinds <= set(allowed) or any(block.channel is not None for block in model.blocks):
    raise UserError(f'the blocks are not all {" or all ".join(kind.__name__ for kind in allowed)} without a channel mixer')
  return model.blocks[0].mixer


def _config_hf(kind: type, model: LM) -> dict:
  mixer = _only_mixer(model, kind)
  config = dict(
      model_type=KIND[kind], architectures=[f'{KIND[kind].capitalize()}ForCausalLM'], vocab_size=model.vocab, hidden_size=model.width,
      num_hidden_layers=model.depth, layer_norm_epsilon=model.norm.eps, tie_word_embeddings=model.head.tied, state_size=mixer.state,
      expand=mixer.expand, conv_kernel=mixer.conv_width, use_bias=mixer.bias, use_conv_bias=mixer.conv_bias, hidden_act='silu',
      intermediate_size=mixer.expand * model.width)
  if kind is Mamba1:
    return config | dict(time_step_rank=mixer.rank or 'auto')
  limits = {} if mixer.dt_highest is None and not mixer.dt_lowest else dict(
      time_step_limit=[mixer.dt_lowest, 'inf' if mixer.dt_highest is None else mixer.dt_highest])
  return config | limits | dict(head_dim=mixer.head_dim, num_heads=mixer.heads(model.width), n_groups=mixer.groups)


def _recognise_own(config, tensors) -> bool:
  return OWN_TABLE in tensors and any(mark in tensors for mark in MARK.values())


def _model_own(config, tensors) -> LM:
  """The vocabulary is the table's: the config's is before it is padded to a multiple."""
  if OWN_TABLE not in tensors:
    raise UserError(f'tensor {OWN_TABLE!r} is missing')
  vocab, width = tensors[OWN_TABLE].shape
  said = dict(config.get('ssm_cfg') or {})
  kind = Mamba2 if said.pop('layer', 'Mamba2' if MARK[Mamba2] in tensors else 'Mamba1') == 'Mamba2' else Mamba1
  for name, default in (('d_intermediate', 0), ('attn_layer_idx', []), ('rms_norm', True)):
    fields.only(config, name, default)
  names = dict(d_state='state', d_conv='conv_width', expand='expand', bias='bias', conv_bias='conv_bias')
  names |= dict(dt_rank='rank') if kind is Mamba1 else dict(headdim='head_dim', ngroups='groups')
  if unknown := sorted(set(said) - set(names) - {'chunk_size'}):
    raise UserError(f'config: ssm_cfg.{unknown[0]} is not supported; allowed: {", ".join(names)}')
  mixer = kind(**{names[name]: value for name, value in said.items() if name in names and value != 'auto'})
  tied = fields.tied(dict(tie_word_embeddings=config.get('tie_embeddings', True)), tensors, True, OWN_TABLE, 'lm_head.weight')
  depth = config.get('n_layer') or 1 + max(int(key.split('.')[2]) for key in tensors if key.startswith('backbone.layers.'))
  return _network(mixer, vocab, width, depth, 1e-5, tied)


def _config_own(model: LM) -> dict:
  mixer = _only_mixer(model, Mamba1, Mamba2)
  cfg = dict(layer=type(mixer).__name__, d_state=mixer.state, d_conv=mixer.conv_width, expand=mixer.expand, bias=mixer.bias, conv_bias=mixer.conv_bias)
  cfg |= dict(dt_rank=mixer.rank or 'auto') if isinstance(mixer, Mamba1) else dict(headdim=mixer.head_dim, ngroups=mixer.groups)
  return dict(d_model=model.width, n_layer=model.depth, vocab_size=model.vocab, ssm_cfg=cfg, rms_norm=True, residual_in_fp32=True,
              fused_add_norm=True, pad_vocab_size_multiple=1, tie_embeddings=model.head.tied)


def _joined(turn: Turn, *sizes: int, axis: int = 0) -> Turn:
  """One tensor of theirs holds several of ours, one after the other along `axis`, each laid out by `turn`."""
  cuts = np.cumsum(sizes)[:-1]
  return Turn(lambda x: tuple(turn.ours(part) for part in np.split(x, cuts, axis)),
              lambda *parts: np.concatenate([turn.theirs(part) for part in parts], axis))


def _rules(table: str, model: LM) -> list[Rule]:
  at, mixer = 'backbone.layers.{layer}.', _only_mixer(model, Mamba1, Mamba2)
  ours = lambda *names: tuple(f'mixer/{name}' for name in names)
  inner = mixer.expand * model.width
  if isinstance(mixer, Mamba1):
    rank = mixer.rank or math.ceil(model.width / 16)
    rules = [('in_proj.weight', ours('w_x', 'w_z'), _joined(TRANSPOSED, inner, inner)), ('in_proj.bias', ours('b_x', 'b_z'), _joined(SAME, inner, inner)),
             ('conv1d.weight', 'mixer/conv', DEPTHWISE), ('conv1d.bias', 'mixer/b_conv', SAME),
             ('x_proj.weight', ours('w_rank', 'w_b', 'w_c'), _joined(TRANSPOSED, rank, mixer.state, mixer.state)),
             ('dt_proj.weight', 'mixer/w_dt', TRANSPOSED), ('dt_proj.bias', 'mixer/dt_bias', SAME)]
  else:
    shared = 2 * mixer.groups * mixer.state
    sizes = inner, inner, shared, mixer.heads(model.width)
    rules = [('in_proj.weight', ours('w_z', 'w_x', 'w_bc', 'w_dt'), _joined(TRANSPOSED, *sizes)),
             ('in_proj.bias', ours('b_z', 'b_x', 'b_bc', 'b_dt'), _joined(SAME, *sizes)),
             ('conv1d.weight', ours('conv_x', 'conv_bc'), _joined(DEPTHWISE, inner, shared)),
             ('conv1d.bias', ours('b_conv_x', 'b_conv_bc'), _joined(SAME, inner, shared)),
             ('dt_bias', 'mixer/dt_bias', SAME), ('norm.weight', 'mixer/norm_scale', SAME)]
  rules += [('A_log', 'mixer/a_log', SAME), ('D', 'mixer/d', SAME), ('out_proj.weight', 'mixer/w_out', TRANSPOSED), ('out_proj.bias', 'mixer/b_out', SAME)]
  return [Rule(f'{at}mixer.{theirs}', places, turn) for theirs, places, turn in rules] + [
      Rule(f'{at}norm.weight', 'norm_mixer/scale'), Rule('backbone.norm_f.weight', 'norm/scale'), Rule(table, 'embedding/table'),
      Rule('lm_head.weight', 'head/weight', TRANSPOSED)]


def _states(model: LM, tokens: int) -> list[Rule]:
  """The convolution's last conv_width inputs, oldest first, lie [channels, conv_width]; Mamba-2's matrices [head_dim, state]."""
  mixer = _only_mixer(model, Mamba1, Mamba2)
  if isinstance(mixer, Mamba1):
    return [Rule('{layer}.conv', 'mixer/conv', LAST_TWO), Rule('{layer}.ssm', 'mixer/ssm')]
  tails = _joined(LAST_TWO, mixer.expand * model.width, 2 * mixer.groups * mixer.state, axis=1)
  return [Rule('{layer}.conv', ('mixer/conv_x', 'mixer/conv_bc'), tails), Rule('{layer}.ssm', 'mixer/ssm', LAST_TWO)]


def _hf(kind: type) -> Format:
  bound = lambda function: functools.partial(function, kind)
  return Format(bound(_recognise_hf), bound(_model_hf), functools.partial(_rules, HF_TABLE), bound(_config_hf), head='lm_head.weight', states=_states)


MAMBA1, MAMBA2 = _hf(Mamba1), _hf(Mamba2)
OWN = Format(_recognise_own, _model_own, functools.partial(_rules, OWN_TABLE), _config_own, head='lm_head.weight', states=_states)
