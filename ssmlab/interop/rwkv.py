"""RWKV-4, 5.2 and 6: the authors' .pth files, and RWKV-4 as transformers' RwkvForCausalLM.

BlinkDL/RWKV-LM, RWKV-v4neo/src/model.py and RWKV-v5/src/model.py; state layout of the `rwkv` package, rwkv/model.py.  A .pth file has no
config: everything is in the shapes, also which version it is.  huggingface/transformers, models/rwkv/modeling_rwkv.py: the same tensors
under longer names, and a state that holds all layers on its last axis.  Its `rescale_every` halves activations against float16's
overflow and is mathematically neutral up to the norms' eps; files hold the tensors as trained, so nothing is to be undone.
"""

import math

import numpy as np

from ssmlab.core.config import UserError
from ssmlab.interop import fields
from ssmlab.interop.mapping import ROW, SAME, TRANSPOSED, Format, Rule, Turn
from ssmlab.layers.channel import RWKV6ChannelMix, RWKVChannelMix
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.rwkv4 import RWKV4
from ssmlab.mixers.rwkv5 import RWKV5
from ssmlab.mixers.rwkv6 import RWKV6
from ssmlab.models.lm import LM, Block

EMPTY = -1e30                                # their exponent of a state that has read nothing; ours is 0


# The models.

def _shape(tensors, key: str, axes: int = 2) -> tuple[int, ...]:
  if key not in tensors:
    raise UserError(f'tensor {key!r} is missing')
  if tensors[key].ndim != axes:
    raise UserError(f'tensor {key!r} has shape {tensors[key].shape}, expected {axes} axes')
  return tensors[key].shape


def _lm(vocab: int, width: int, depth: int, mixer, channel, eps: float, tied: bool = False) -> LM:
  norm = LayerNorm(eps)
  return LM(vocab=vocab, width=width, depth=depth, pattern=(Block(mixer, channel),), norm=norm, embedding=Embedding(norm=norm), head=Head(tied))


def _rwkv4(width: int, inner: int) -> RWKV4:
  return RWKV4(inner=None if inner == width else inner)


def _rwkv4_channel(width: int, hidden: int) -> RWKVChannelMix:
  return RWKVChannelMix(hidden, key_start=max(1.0, math.sqrt(hidden / width)))


def _pth_model(parts):
  """parts: (config, tensors, width, hidden) -> (mixer, channel mixer)."""
  def model(config, tensors) -> LM:
    vocab, width = _shape(tensors, 'emb.weight')
    depth = 1 + max((int(key.split('.')[1]) for key in tensors if key.startswith('blocks.') and key.split('.')[1].isdigit()), default=0)
    mixer, channel = parts(config, tensors, width, _shape(tensors, 'blocks.0.ffn.key.weight')[0])
    return _lm(vocab, width, depth, mixer, channel, config.get('layer_norm_eps') or 1e-5)
  return model


def _parts4(config, tensors, width, hidden):
  return _rwkv4(width, _shape(tensors, 'blocks.0.att.key.weight')[0]), _rwkv4_channel(width, hidden)


def _parts5(config, tensors, width, hidden):
  _shape(tensors, 'blocks.0.att.time_decay')                      # one per head before 5.2
  return RWKV5(_shape(tensors, 'blocks.0.att.time_faaaa')[1], eps=config.get('group_norm_eps') or 64e-5), RWKVChannelMix(hidden)


def _parts6(config, tensors, width, hidden):
  mixer = RWKV6(_shape(tensors, 'blocks.0.att.time_faaaa')[1], rank_mix=_shape(tensors, 'blocks.0.att.time_maa_w2', 3)[1],
                rank_decay=_shape(tensors, 'blocks.0.att.time_decay_w1')[1], eps=config.get('group_norm_eps') or 64e-5)
  return mixer, RWKV6ChannelMix(hidden)


def _hf_model(config, tensors) -> LM:
  width = config.get('hidden_size', 4096)
  tied = fields.tied(config, tensors, False, 'rwkv.embeddings.weight', 'head.weight')
  return _lm(config.get('vocab_size', 50277), width, config.get('num_hidden_layers', 32),
             _rwkv4(width, config.get('attention_hidden_size') or width), _rwkv4_channel(width, config.get('intermediate_size') or 4 * width),
             config.get('layer_norm_epsilon', 1e-5), tied)


def _hf_config(model: LM) -> dict:
  block = model.blocks[0]
  if not isinstance(block.mixer, RWKV4) or not isinstance(block.channel, RWKVChannelMix):
    raise UserError('the model is not an RWKV-4: its blocks are not RWKV4 and RWKVChannelMix')
  return dict(model_type='rwkv', architectures=['RwkvForCausalLM'], vocab_size=model.vocab, hidden_size=model.width,
              num_hidden_layers=model.depth, attention_hidden_size=block.mixer.inner or model.width, intermediate_size=block.channel.hidden,
              layer_norm_epsilon=model.norm.eps, rescale_every=6, tie_word_embeddings=model.head.tied, bos_token_id=0, eos_token_id=0)


# The parameters.

def _norm(theirs: str, ours: str, scale: str = '/scale', bias: str = '/bias') -> list[Rule]:
  return [Rule(f'{theirs}.weight', ours + scale), Rule(f'{theirs}.bias', ours + bias)]


def _shared(root: str = '', embedding: str = 'emb', ln0: str = 'ln0', att: str = 'att', ffn: str = 'ffn') -> list[Rule]:
  """Everything but time mixing's own vectors; the names are the .pth files' unless given."""
  block = root + 'blocks.{layer}.'
  maps = dict(receptance='w_r', key='w_k', value='w_v', gate='w_g', output='w_o')
  rules = [Rule(f'{block}{att}.{theirs}.weight', f'mixer/{ours}', TRANSPOSED) for theirs, ours in maps.items()]
  rules += [Rule(f'{block}{ffn}.{name}.weight', f'channel/w_{name}', TRANSPOSED) for name in ('key', 'value', 'receptance')]
  rules += _norm(f'{block}ln1', 'norm_mixer') + _norm(f'{block}ln2', 'norm_channel') + _norm(f'{block}{att}.ln_x', 'mixer/norm', '_scale', '_bias')
  return rules + _norm(f'{root}blocks.0.{ln0}', 'embedding/norm') + _norm(f'{root}ln_out', 'norm') + [
      Rule(f'{root}{embedding}.weight', 'embedding/table'), Rule('head.weight', 'head/weight', TRANSPOSED)]


def _pth_rules(mixes: str, prefix: str, mix: str, own: dict[str, tuple[str, Turn]]):
  """mixes: one letter for each vector of mixing coefficients, theirs prefix + letter, ours mix + letter.  own: theirs -> (ours, layout)."""
  att, ffn = 'blocks.{layer}.att.', 'blocks.{layer}.ffn.'
  rules = [Rule(f'{att}{prefix}{name}', f'mixer/{mix}{name}', ROW) for name in mixes]
  rules += [Rule(f'{ffn}{prefix}{name}', f'channel/{mix}{name}', ROW) for name in 'kr']
  rules += [Rule(att + theirs, f'mixer/{ours}', turn) for theirs, (ours, turn) in own.items()]
  return lambda model: _shared() + rules


def _hf_rules(model: LM) -> list[Rule]:
  att, ffn = 'rwkv.blocks.{layer}.attention.', 'rwkv.blocks.{layer}.feed_forward.'
  rules = _shared('rwkv.', 'embeddings', 'pre_ln', 'attention', 'feed_forward')
  rules += [Rule(f'{att}time_mix_{name}', f'mixer/mix_{name[0]}', ROW) for name in ('key', 'value', 'receptance')]
  rules += [Rule(f'{ffn}time_mix_{name}', f'channel/mix_{name[0]}', ROW) for name in ('key', 'receptance')]
  return rules + [Rule(f'{att}time_decay', 'mixer/decay'), Rule(f'{att}time_first', 'mixer/bonus')]


# The states.

def _their_exponent(denominator, exponent):
  return np.where(denominator == 0, np.float32(EMPTY), exponent)


def _our_exponent(denominator, exponent):
  return np.where(denominator == 0, np.float32(0), exponent)


SUMS = Turn(lambda n, d, e: (n, d, _our_exponent(d, e)), lambda n, d, e: (n, d, _their_exponent(d, e)))
LAYERS_LAST = Turn(lambda x: tuple(np.moveaxis(x, -1, 0)), lambda *layers: np.stack(layers, axis=-1))


def _all_sums(n, d, e) -> tuple[np.ndarray, ...]:
  return tuple(layer for x in (n, d, _our_exponent(d, e)) for layer in np.moveaxis(x, -1, 0))


def _all_their_sums(*layers) -> tuple[np.ndarray, ...]:
  n, d, e = np.moveaxis(np.stack(layers).reshape(3, -1, *layers[0].shape), 1, -1)
  return n, d, _their_exponent(d, e)


def _shifts() -> list[Rule]:
  return [Rule('{layer}.att_x_prev', 'mixer/shift'), Rule('{layer}.ffn_x_prev', 'channel/shift')]


def _states4(model: LM, tokens: int) -> list[Rule]:
  names = ('mixer/numerator', 'mixer/denominator', 'mixer/exponent')
  return [*_shifts(), Rule(('{layer}.wkv_num', '{layer}.wkv_den', '{layer}.wkv_max'), names, SUMS)]


def _states5(model: LM, tokens: int) -> list[Rule]:
  return [*_shifts(), Rule('{layer}.wkv', 'mixer/wkv')]


def _hf_states(model: LM, tokens: int) -> list[Rule]:
  names = ('*/mixer/numerator', '*/mixer/denominator', '*/mixer/exponent')
  return [Rule('0', '*/channel/shift', LAYERS_LAST), Rule('1', '*/mixer/shift', LAYERS_LAST),
          Rule(('2', '3', '4'), names, Turn(_all_sums, _all_their_sums))]


def _is(*keys: str, without: str):
  """Recognises files that hold all the keys in block 0's time mixing and not the one."""
  return lambda config, tensors: all(f'blocks.0.att.{key}' in tensors for key in keys) and f'blocks.0.att.{without}' not in tensors


HF = Format(
    lambda config, tensors: (config or {}).get('model_type') == 'rwkv' or 'rwkv.blocks.0.attention.time_first' in tensors,
    _hf_model, _hf_rules, _hf_config, head='head.weight', states=_hf_states)
V4 = Format(_is('time_first', without='ln_x.weight'), _pth_model(_parts4),
            _pth_rules('kvr', 'time_mix_', 'mix_', dict(time_decay=('decay', SAME), time_first=('bonus', SAME))), states=_states4)
V5 = Format(_is('time_faaaa', without='time_maa_x'), _pth_model(_parts5),
            _pth_rules('rkvg', 'time_mix_', 'mix_', dict(time_decay=('decay', SAME), time_faaaa=('bonus', SAME))), states=_states5)
V6 = Format(_is('time_faaaa', 'time_maa_x', without='r_k'), _pth_model(_parts6), _pth_rules('xwkvrg', 'time_maa_', 'x_', dict(
    time_maa_w1=('mix1', SAME), time_maa_w2=('mix2', SAME), time_decay=('w0', ROW), time_decay_w1=('w1', SAME), time_decay_w2=('w2', SAME),
    time_faaaa=('bonus', SAME))), states=_states5)
