"""RWKV-7's .pth files.  BlinkDL/RWKV-LM, RWKV-v7/train_temp/src/model.py; state layout of the `rwkv` package, rwkv/model.py.

There is no config: everything is in the shapes.
"""

from ssmlab.core.config import UserError
from ssmlab.interop.mapping import LAST_TWO, ROW, SAME, TRANSPOSED, Format, Rule
from ssmlab.layers.channel import RWKV7ChannelMix
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.rwkv7 import RWKV7, SHIFTED
from ssmlab.models.lm import LM, Block


def _shape(tensors, key: str, axes: int = 2) -> tuple[int, ...]:
  if key not in tensors:
    raise UserError(f'tensor {key!r} is missing')
  if tensors[key].ndim != axes:
    raise UserError(f'tensor {key!r} has shape {tensors[key].shape}, expected {axes} axes')
  return tensors[key].shape


def _model(config, tensors) -> LM:
  vocab, width = _shape(tensors, 'emb.weight')
  depth = 1 + max((int(key.split('.')[1]) for key in tensors if key.startswith('blocks.') and key.split('.')[1].isdigit()), default=0)
  ranks = {f'rank_{name}': _shape(tensors, f'blocks.0.att.{name}1')[1] for name in 'wag'}
  used = [key for key in (f'blocks.{i}.att.v1' for i in range(depth - 1, -1, -1)) if key in tensors]
  ranks['rank_v'] = _shape(tensors, used[0])[1] if used else 1                 # a single layer without them never uses them
  mixer = RWKV7(head_dim=_shape(tensors, 'blocks.0.att.r_k')[1], eps=config.get('group_norm_eps') or 64e-5, **ranks)
  norm = LayerNorm(config.get('layer_norm_eps') or 1e-5)
  channel = RWKV7ChannelMix(hidden=_shape(tensors, 'blocks.0.ffn.key.weight')[0])
  return LM(vocab=vocab, width=width, depth=depth, pattern=(Block(mixer, channel),), norm=norm, embedding=Embedding(norm=norm), head=Head())


def _norm(theirs: str, ours: str, scale: str = '/scale', bias: str = '/bias') -> list[Rule]:
  return [Rule(f'{theirs}.weight', ours + scale), Rule(f'{theirs}.bias', ours + bias)]


def _rules(model: LM) -> list[Rule]:
  att, ffn = 'blocks.{layer}.att.', 'blocks.{layer}.ffn.'
  rules = [Rule(f'{att}{name}.weight', f'mixer/w_{name[0] if name != "output" else "o"}', TRANSPOSED)
           for name in ('receptance', 'key', 'value', 'output')]
  rows = [f'x_{name}' for name in SHIFTED] + ['w0', 'a0', 'v0', 'k_k', 'k_a']
  low_rank = ['w1', 'w2', 'a1', 'a2', 'v1', 'v2', 'g1', 'g2', 'r_k']
  unused = lambda name: (0,) if name[0] == 'v' else ()                         # layer 0 has no earlier value to mix in
  rules += [Rule(att + name, f'mixer/{name}', ROW if name in rows else SAME, absent=unused(name)) for name in rows + low_rank]
  rules += _norm(f'{att}ln_x', 'mixer/norm', '_scale', '_bias')
  rules += [Rule(f'{ffn}x_k', 'channel/x_k', ROW), Rule(f'{ffn}key.weight', 'channel/w_key', TRANSPOSED),
            Rule(f'{ffn}value.weight', 'channel/w_value', TRANSPOSED)]
  rules += _norm('blocks.{layer}.ln1', 'norm_mixer') + _norm('blocks.{layer}.ln2', 'norm_channel')
  return rules + _norm('blocks.0.ln0', 'embedding/norm') + _norm('ln_out', 'norm') + [
      Rule('emb.weight', 'embedding/table'), Rule('head.weight', 'head/weight', TRANSPOSED)]


def _states(model: LM, tokens: int) -> list[Rule]:
  return [Rule('{layer}.att_x_prev', 'mixer/shift'), Rule('{layer}.wkv', 'mixer/wkv', LAST_TWO), Rule('{layer}.ffn_x_prev', 'channel/shift')]


FORMAT = Format(lambda config, tensors: 'blocks.0.att.r_k' in tensors, _model, _rules, states=_states)
