"""Gated DeltaNet hybrids in Hugging Face's layouts.  transformers, models/qwen3_5/modeling_qwen3_5.py (text, dense) and
models/qwen3_next/modeling_qwen3_next.py (its dense form; a mixture of experts is refused).

The two differ in how the Gated DeltaNet's input maps are fused: Qwen3.5 concatenates [q, k, v], Qwen3-Next interleaves [q, k, v, z] and
[b, a] by key head.  What a config leaves out has transformers' defaults.  Scales are 1 + w, except of the norm inside the mixer.
"""

import functools

import numpy as np

from ssmlab.core.config import UserError
from ssmlab.interop import fields
from ssmlab.interop.mapping import TRANSPOSED, Format, Rule, Turn
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.gated_deltanet import GatedDeltaNet
from ssmlab.models.lm import LM, Block

TYPES = {'qwen3_5_text': 'Qwen3_5ForCausalLM', 'qwen3_next': 'Qwen3NextForCausalLM'}
# vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_key_value_heads: where the two have defaults of their own.
DEFAULTS = {'qwen3_5_text': (248320, 4096, 12288, 32, 4), 'qwen3_next': (151936, 2048, 5632, 48, 2)}
KINDS = ('linear_attention', 'full_attention')


def _recognise(kind: str, fused: str, config, tensors) -> bool:
  return (config or {}).get('model_type') == kind or any(key.endswith(f'.linear_attn.{fused}.weight') for key in tensors)


def _dense(config, depth: int) -> None:
  """Raises where a layer is a mixture of experts."""
  every, only = config.get('decoder_sparse_step', 1), config.get('mlp_only_layers') or ()
  sparse = [layer for layer in range(depth) if layer not in only and (layer + 1) % every == 0]
  if config.get('num_experts', 512) > 0 and sparse:
    raise UserError(f'config: layer {sparse[0]} is a mixture of experts, which is not supported; allowed: mlp_only_layers={list(range(depth))}')


def _kinds(config, depth: int) -> list[str]:
  every = config.get('full_attention_interval', 4)
  kinds = config.get('layer_types') or [KINDS[(layer + 1) % every == 0] for layer in range(depth)]
  for kind in kinds:
    if kind not in KINDS:
      raise UserError(f'config: layer type {kind!r} is not supported; allowed: {", ".join(KINDS)}')
  if len(kinds) != depth:
    raise UserError(f'config: layer_types names {len(kinds)} layers, num_hidden_layers={depth}')
  return kinds


def _model(kind: str, config, tensors) -> LM:
  get = lambda name, default: default if config.get(name) is None else config[name]
  vocab, width, hidden, depth, kv_heads = DEFAULTS[kind]
  depth, eps = get('num_hidden_layers', depth), get('rms_norm_eps', 1e-6)
  if kind == 'qwen3_next':
    _dense(config, depth)
  fields.only(config, 'hidden_act', 'silu', 'swish')                    # also of the short convolutions, where ours is fixed
  theta, fraction = fields.rope(config, fraction=0.25)
  biased, norm = bool(get('attention_bias', False)), RMSNorm(eps, zero_centred=True)
  mixers = dict(
      linear_attention=GatedDeltaNet(
          heads=get('linear_num_key_heads', 16), head_dim=get('linear_key_head_dim', 128), value_heads=get('linear_num_value_heads', 32),
          value_dim=get('linear_value_head_dim', 128), conv_width=get('linear_conv_kernel_dim', 4), eps=eps),
      full_attention=Attention(
          heads=get('num_attention_heads', 16), head_dim=get('head_dim', 256), kv_heads=get('num_key_value_heads', kv_heads), theta=theta,
          rotary_fraction=fraction, bias=biased, output_bias=biased, qk_norm=norm, gate=True))
  kinds = _kinds(config, depth)
  channel = GatedMLP(get('intermediate_size', hidden))
  tied = fields.tied(config, tensors, False, 'model.embed_tokens.weight', 'lm_head.weight')
  return LM(vocab=get('vocab_size', vocab), width=get('hidden_size', width), depth=depth,
            pattern=tuple(Block(mixers[each], channel) for each in kinds[:fields.period(kinds)]), norm=norm, embedding=Embedding(), head=Head(tied=tied))


def _config(kind: str, model: LM) -> dict:
  """config.json; sizes of a kind of block that the model does not have are left to transformers' defaults."""
  classes = dict(zip((GatedDeltaNet, Attention), KINDS))
  if any(type(block.mixer) not in classes or not isinstance(block.channel, GatedMLP) for block in model.blocks):
    raise UserError('the model is not a Qwen hybrid: its blocks are not GatedDeltaNet or Attention and GatedMLP')
  kinds = [classes[type(block.mixer)] for block in model.blocks]
  of = {kind: block.mixer for kind, block in zip(kinds, model.blocks)}
  config = dict(model_type=kind, architectures=[TYPES[kind]], vocab_size=model.vocab, hidden_size=model.width, num_hidden_layers=model.depth,
                intermediate_size=model.blocks[0].channel.hidden, hidden_act='silu', rms_norm_eps=model.norm.eps,
                tie_word_embeddings=model.head.tied, layer_types=kinds)
  if kind == 'qwen3_next':
    config |= dict(num_experts=0, mlp_only_layers=list(range(model.depth)))
  if mixer := of.get('linear_attention'):
    config |= dict(linear_num_key_heads=mixer.heads, linear_key_head_dim=mixer.head_dim, linear_num_value_heads=mixer.value_heads or mixer.heads,
                   linear_value_head_dim=mixer.value_dim or 2 * mixer.head_dim, linear_conv_kernel_dim=mixer.conv_width)
  if mixer := of.get('full_attention'):
    rope = dict(rope_theta=mixer.theta, partial_rotary_factor=mixer.rotary_fraction)
    config |= dict(num_attention_heads=mixer.heads, num_key_value_heads=mixer.kv_heads or mixer.heads, head_dim=mixer.head_dim,
                   attention_bias=mixer.bias, **rope, rope_parameters=rope | dict(rope_type='default'))
  return config


def grouped(groups: int, *sizes: int) -> Turn:
  """Their matrix [out, in] holds in every group (a head) `sizes` rows of each of our matrices [in, groups * size] in turn; vectors alike."""
  cuts = list(np.cumsum(sizes)[:-1])

  def ours(x):
    parts = np.split(x.reshape(groups, sum(sizes), *x.shape[1:]), cuts, axis=1)
    return tuple(part.reshape(-1, *x.shape[1:]).T for part in parts)

  def theirs(*parts):
    return np.concatenate([part.T.reshape(groups, size, *part.shape[:-1]) for part, size in zip(parts, sizes)], axis=1).reshape(-1, *parts[0].shape[:-1])
  return Turn(ours, theirs)


def _delta_rules(kind: str, mixer: GatedDeltaNet) -> list[Rule]:
  at, ours = 'model.layers.{layer}.linear_attn.', lambda *names: tuple(f'mixer/{name}' for name in names)
  value_heads, value = mixer.value_heads or mixer.heads, mixer.value_dim or 2 * mixer.head_dim
  share, keys, values = value_heads // mixer.heads, mixer.heads * mixer.head_dim, value_heads * value
  joined, own = grouped(1, keys, keys, values), dict(mixer=GatedDeltaNet)
  convolution = Turn(lambda x: joined.ours(x[:, 0]), lambda *parts: joined.theirs(*parts)[:, None])
  if kind == 'qwen3_next':
    rules = [Rule(f'{at}in_proj_qkvz.weight', ours('w_q', 'w_k', 'w_v', 'w_g'),
                  grouped(mixer.heads, mixer.head_dim, mixer.head_dim, share * value, share * value), **own),
             Rule(f'{at}in_proj_ba.weight', ours('w_b', 'w_a'), grouped(mixer.heads, share, share), **own)]
  else:
    rules = [Rule(f'{at}in_proj_qkv.weight', ours('w_q', 'w_k', 'w_v'), joined, **own)]
    rules += [Rule(f'{at}in_proj_{theirs}.weight', f'mixer/w_{name}', TRANSPOSED, **own) for theirs, name in (('z', 'g'), ('b', 'b'), ('a', 'a'))]
  return rules + [
      Rule(f'{at}conv1d.weight', ours('conv_q', 'conv_k', 'conv_v'), convolution, **own),
      Rule(f'{at}A_log', 'mixer/A_log', **own), Rule(f'{at}dt_bias', 'mixer/dt_bias', **own), Rule(f'{at}norm.weight', 'mixer/norm_scale', **own),
      Rule(f'{at}out_proj.weight', 'mixer/w_o', TRANSPOSED, **own)]


def _attention_rules(mixer: Attention) -> list[Rule]:
  at, own, pairs = 'model.layers.{layer}.self_attn.', dict(mixer=Attention), grouped(mixer.heads, mixer.head_dim, mixer.head_dim)
  rules = [Rule(f'{at}q_proj.weight', ('mixer/w_q', 'mixer/w_g'), pairs, **own), Rule(f'{at}q_proj.bias', ('mixer/b_q', 'mixer/b_g'), pairs, **own)]
  for name in 'kvo':
    rules += [Rule(f'{at}{name}_proj.weight', f'mixer/w_{name}', TRANSPOSED, **own), Rule(f'{at}{name}_proj.bias', f'mixer/b_{name}', **own)]
  return rules + [Rule(f'{at}{name}_norm.weight', f'mixer/norm_{name}/scale', **own) for name in 'qk']


def _rules(kind: str, model: LM) -> list[Rule]:
  at, rules = 'model.layers.{layer}.', []
  for mixer in dict.fromkeys(block.mixer for block in model.blocks):
    rules += _delta_rules(kind, mixer) if isinstance(mixer, GatedDeltaNet) else _attention_rules(mixer)
  rules += [Rule(f'{at}mlp.{name}_proj.weight', f'channel/w_{name}', TRANSPOSED) for name in ('gate', 'up', 'down')]
  return rules + [
      Rule(f'{at}input_layernorm.weight', 'norm_mixer/scale'), Rule(f'{at}post_attention_layernorm.weight', 'norm_channel/scale'),
      Rule('model.embed_tokens.weight', 'embedding/table'), Rule('model.norm.weight', 'norm/scale'),
      Rule('lm_head.weight', 'head/weight', TRANSPOSED)]


def _format(kind: str, fused: str) -> Format:
  of_kind = lambda function: functools.partial(function, kind)
  return Format(functools.partial(_recognise, kind, fused), of_kind(_model), of_kind(_rules), of_kind(_config), head='lm_head.weight',
                ignored=(r'.*\.rotary_emb\.inv_freq', r'mtp\..*'))


QWEN3_5 = _format('qwen3_5_text', 'in_proj_qkv')
QWEN3_NEXT = _format('qwen3_next', 'in_proj_qkvz')
