"""xLSTM (7B) in Hugging Face's layout.  transformers, models/xlstm/modeling_xlstm.py and its configuration; huggingface.co/NX-AI/xLSTM-7b.

What a config leaves out has transformers' defaults.  Fields that say how the authors' kernels run (mode, chunk_size and their like) change
no number but by rounding.  add_out_norm is read by no code of transformers: there is a norm before the head.
"""

import numpy as np

from ssmlab.core.config import UserError
from ssmlab.interop import fields
from ssmlab.interop.mapping import TRANSPOSED, Format, Rule, Turn
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.mlstm import MLSTM
from ssmlab.models.lm import LM, Block

TABLE, HEAD = 'backbone.embeddings.weight', 'lm_head.weight'
WEIGHTS = {'q': 'w_q', 'k': 'w_k', 'v': 'w_v', 'igate_preact': 'w_i', 'fgate_preact': 'w_f', 'ogate_preact': 'w_g', 'out_proj': 'w_o'}


def _recognise(config, tensors) -> bool:
  return (config or {}).get('model_type') == 'xlstm' or 'backbone.blocks.0.mlstm_layer.igate_preact.bias' in tensors


def _rounded_up(size: float, multiple: int) -> int:
  """transformers' rounding, whose floor division is of floats: 4096 * 2.667 in multiples of 64 is 10944."""
  return int((size + multiple - 1) // multiple * multiple)


def _either(config, name: str, older: str, default: int) -> int:
  return config.get(name) or config.get(older) or default


def _model(config, tensors) -> LM:
  fields.only(config, 'use_bias', False)
  fields.only(config, 'weight_mode', 'single')
  width, heads = _either(config, 'hidden_size', 'embedding_dim', 4096), config.get('num_heads', 8)
  keys, values = int(width * config.get('qk_dim_factor', 0.5)), int(width * config.get('v_dim_factor', 1.0))
  for name, size in (('qk_dim_factor', keys), ('v_dim_factor', values)):
    if size % heads:
      raise UserError(f'config: {name} gives {size} channels, which num_heads={heads} does not divide')
  norm_eps, cap = config.get('norm_eps', 1e-6), config.get('gate_soft_cap', 15.0)
  mixer = MLSTM(heads, keys // heads, values // heads, soft_cap=cap, eps=config.get('eps', 1e-6), norm_eps=norm_eps)
  hidden = _rounded_up(width * config.get('ffn_proj_factor', 2.667), config.get('ffn_round_up_to_multiple_of', 64))
  return LM(vocab=config.get('vocab_size', 50304), width=width, depth=_either(config, 'num_hidden_layers', 'num_blocks', 32),
            pattern=(Block(mixer, GatedMLP(hidden)),), norm=RMSNorm(norm_eps), embedding=Embedding(),
            head=Head(tied=fields.tied(config, tensors, False, TABLE, HEAD), softcap=config.get('output_logit_soft_cap', 30.0)))


def _config(model: LM) -> dict:
  mixer, channel = model.blocks[0].mixer, model.blocks[0].channel
  if not isinstance(mixer, MLSTM) or not isinstance(channel, GatedMLP):
    raise UserError('the model is not an xLSTM of this layout: its blocks are not MLSTM and GatedMLP')
  keys, values = mixer.heads * mixer.head_dim, mixer.heads * (mixer.value_dim or 2 * mixer.head_dim)
  return dict(
      model_type='xlstm', architectures=['xLSTMForCausalLM'], vocab_size=model.vocab, hidden_size=model.width, embedding_dim=model.width,
      num_hidden_layers=model.depth, num_blocks=model.depth, num_heads=mixer.heads, qk_dim_factor=_factor(keys, model.width),
      v_dim_factor=_factor(values, model.width), ffn_proj_factor=channel.hidden / model.width, ffn_round_up_to_multiple_of=1,
      gate_soft_cap=mixer.soft_cap, output_logit_soft_cap=model.head.softcap, eps=mixer.eps, norm_eps=model.norm.eps,
      use_bias=False, weight_mode='single', add_out_norm=True, tie_word_embeddings=model.head.tied)


def _factor(size: int, width: int) -> float:
  """size / width, or the next float above where rounding would lose one on the way back through int()."""
  factor = size / width
  return factor if int(width * factor) == size else float(np.nextafter(factor, np.inf))


def _rules(model: LM) -> list[Rule]:
  at, layer = 'backbone.blocks.{layer}.', 'backbone.blocks.{layer}.mlstm_layer.'
  rules = [Rule(f'{layer}{theirs}.weight', f'mixer/{ours}', TRANSPOSED) for theirs, ours in WEIGHTS.items()]
  rules += [Rule(f'{layer}{name}gate_preact.bias', f'mixer/b_{name}') for name in 'if']
  rules += [Rule(f'{at}ffn.proj_{theirs}.weight', f'channel/w_{ours}', TRANSPOSED)
            for theirs, ours in (('up_gate', 'gate'), ('up', 'up'), ('down', 'down'))]
  return rules + [
      Rule(f'{layer}multihead_norm.weight', 'mixer/norm_scale'), Rule(f'{at}norm_mlstm.weight', 'norm_mixer/scale'),
      Rule(f'{at}norm_ffn.weight', 'norm_channel/scale'), Rule(TABLE, 'embedding/table'),
      Rule('backbone.out_norm.weight', 'norm/scale'), Rule(HEAD, 'head/weight', TRANSPOSED)]


# Their cache holds C and n apart, and m as [batch, heads, 1]: rnn_state[layer] of transformers' xLSTMCache.
_MEMORY = Turn(lambda c, n: np.concatenate([c, n[..., None]], axis=-1), lambda memory: (memory[..., :-1], memory[..., -1]))
_LAST_ONE = Turn(lambda m: m[..., 0], lambda m: m[..., None])


def _states(model: LM, tokens: int) -> list[Rule]:
  return [Rule(('rnn_state.{layer}.0', 'rnn_state.{layer}.1'), 'mixer/memory', _MEMORY), Rule('rnn_state.{layer}.2', 'mixer/stabiliser', _LAST_ONE)]


FORMAT = Format(_recognise, _model, _rules, _config, head=HEAD, states=_states)
