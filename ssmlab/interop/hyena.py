"""Hyena and H3 language models in the authors' layout: HazyResearch/safari, src/models/sequence/simple_lm.py and long_conv_lm.py
(SimpleLMHeadModel, ConvLMHeadModel), also HyenaDNA's.

Sizes are read off the tensors; the config says what tensors do not: whether the filter has its window (layer.modulate, which files of
either kind do not betray: hyena-small-150b's evaluation says false, its training true), layer.shift, heads of attention.  Without a config
they are those of the classes.  Learning rates are absolute there and relative here: only that of positions, 0 or not, is taken over.
"""

import re

import numpy as np

from ssmlab.core.config import UserError
from ssmlab.interop import fields
from ssmlab.interop.mapping import DEPTHWISE, SAME, TRANSPOSED, Arrays, Format, Rule, Turn, joined, shaped
from ssmlab.layers.channel import MLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.filters import ImplicitFilter
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.h3 import H3
from ssmlab.mixers.hyena import Hyena
from ssmlab.models.lm import LM, Block

LAYER, TABLE, HEAD = 'backbone.layers.{layer}.', 'backbone.embeddings.word_embeddings.weight', 'lm_head.weight'
SINE = 'implicit_filter.{}.freq'
OLDER = ((r'^(model|hyena)\.', ''), (r'^s4seq\.encoder\.', 'backbone.'), (r'^embedding\.', 'backbone.embeddings.word_embeddings.'),
         (r'^backbone\.norm\.', 'backbone.ln_0.'), (r'^(backbone\.layers\.\d+\.(?:mixer|mlp))\.layer\.', r'\1.'))
# Options of the operator that are off in every published model.
OFF = dict(num_heads=1, inner_factor=1, num_blocks=1, outer_mixing=False, post_order_ffn=False, activation='id', bias=True)
ONE_CHANNEL = Turn(lambda x: x[0].T, lambda x: x.T[None])


# What files of several ages say in other words.

def renamed(tensors: Arrays) -> Arrays:
  """The tensors under today's keys, with every copy of the shared frequencies."""
  now = {}
  for key, value in tensors.items():
    for pattern, replacement in OLDER:
      key = re.sub(pattern, replacement, key)
    now[key] = value
  for index in sorted({int(key.split('.')[2]) for key in now if re.match(r'backbone\.layers\.\d+\.', key)}):
    _rename_mixer(now, f'backbone.layers.{index}.mixer.')
  if TABLE in now:
    now.setdefault(HEAD, now[TABLE])
  return _copied(_moved_norms(now) if 'backbone.ln_0.weight' in now else now)


def _rename_mixer(tensors: dict[str, np.ndarray], at: str) -> None:
  """H3's output keeps its old name; attention's parts are stacked."""
  if f'{at}ssm_k_D' in tensors:
    return
  for end in ('weight', 'bias'):
    if f'{at}output_linear.{end}' in tensors:
      tensors[f'{at}out_proj.{end}'] = tensors.pop(f'{at}output_linear.{end}')
    if f'{at}q_proj.{end}' in tensors:
      tensors[f'{at}Wqkv.{end}'] = np.concatenate([tensors.pop(f'{at}{name}_proj.{end}') for name in 'qkv'])


def _moved_norms(tensors: dict[str, np.ndarray]) -> Arrays:
  """Norms that were named by what they follow: ln_0 is the first norm1, norm1 the block's norm2, norm2 the next one's norm1, the last ln_f."""
  depth = 1 + max(int(key.split('.')[2]) for key in tensors if key.startswith('backbone.layers.'))

  def place(key):
    if key.startswith('backbone.ln_0.'):
      return key.replace('ln_0', 'layers.0.norm1')
    found = re.match(r'backbone\.layers\.(\d+)\.norm([12])\.(.*)', key)
    if not found:
      return key
    layer, which, end = int(found[1]), found[2], found[3]
    if which == '1':
      return f'backbone.layers.{layer}.norm2.{end}'
    return f'backbone.layers.{layer + 1}.norm1.{end}' if layer + 1 < depth else f'backbone.ln_f.{end}'
  return {place(key): value for key, value in tensors.items()}


def _copied(tensors: dict[str, np.ndarray]) -> Arrays:
  """Files keep shared tensors once or several times: here several, which must be equal."""
  for key in [key for key in tensors if key.endswith('implicit_filter.1.freq')]:
    at = key.removesuffix(SINE.format(1))
    for index in _linear_layers(tensors, at)[:-1]:
      copy = tensors.setdefault(at + SINE.format(index + 1), tensors[key])
      if not np.array_equal(copy, tensors[key]):
        raise UserError(f'tensor {at + SINE.format(index + 1)!r} differs from {key!r}: one vector of frequencies is shared by all layers')
  return tensors


# From tensors and config to models.

def _linear_layers(tensors: Arrays, at: str) -> list[int]:
  """Places of the linear layers in the filter's network."""
  found = (re.fullmatch(r'implicit_filter\.(\d+)\.weight', key.removeprefix(at)) for key in tensors if key.startswith(at))
  return sorted(int(match[1]) for match in found if match)


def filter_of(config: dict, tensors: Arrays, at: str) -> ImplicitFilter:
  """The filter whose tensors begin with `at`.  config: the authors' arguments of HyenaFilter and ExponentialModulation."""
  _, l_max, emb_dim = _sized(tensors, f'{at}pos_emb.z', 3)
  return ImplicitFilter(
      l_max, emb_dim, width=_sized(tensors, f'{at}implicit_filter.0.weight', 2)[0], inner_layers=len(_linear_layers(tensors, at)) - 2,
      frequency=float(config.get('w', 1)), modulate=bool(config.get('modulate', True)), target=config.get('target', 1e-2),
      fast=config.get('fast_decay_pct', 0.3), slow=config.get('slow_decay_pct', 1.5), shift=float(config.get('shift', 0.0)),
      normalised=bool(config.get('normalized', False)), position_rate=0.0 if config.get('lr_pos_emb') == 0 else 1.0,
      window_rate=1.0 if config.get('modulation_lr') else 0.0)


def _sized(tensors: Arrays, key: str, axes: int) -> tuple[int, ...]:
  if key not in tensors:
    raise UserError(f'tensor {key!r} is missing')
  if tensors[key].ndim != axes:
    raise UserError(f'tensor {key!r} has shape {tensors[key].shape}, expected {axes} axes')
  return tensors[key].shape


def hyena_of(config: dict, tensors: Arrays, at: str) -> Hyena:
  """config: the authors' arguments of HyenaOperator."""
  for name, value in OFF.items():
    fields.only(config, name, value)
  rows, width = _sized(tensors, f'{at}in_proj.weight', 2)
  return Hyena(filter_of(config, tensors, f'{at}filter_fn.'), order=rows // width - 1, conv_width=_sized(tensors, f'{at}short_filter.weight', 3)[2])


def h3_of(config: dict, tensors: Arrays, at: str) -> H3:
  """config: the authors' arguments of H3 and of its diagonal kernel.  Theirs cuts the filters at l_max, if there is one; ours go on."""
  for name, value in (('mode', 'diag'), ('real_type', 'exp'), ('bandlimit', None), ('force_real', False)):
    fields.only(config, name, value)
  width, heads = _sized(tensors, f'{at}ssm_k_D', 1)[0], _sized(tensors, f'{at}D', 1)[0]
  state = _sized(tensors, f'{at}ssm_k_kernel.kernel.B', 2)[1]
  return H3(state, head_dim=width // heads, hold=fields.only(config, 'disc', 'bilinear', 'zoh') == 'zoh')


def _attention_of(config: dict, tensors: Arrays, at: str) -> Attention:
  said = config.get('attn_cfg') or {}
  fields.only(said, 'causal', True)
  width, heads = _sized(tensors, f'{at}out_proj.weight', 2)[0], fields.need(said, 'num_heads')
  return Attention(heads=heads, head_dim=width // heads, bias=True, output_bias=True, start=0.02, theta=float(said.get('rotary_emb_base') or 10000.0),
                   rotary_fraction=said.get('rotary_emb_dim', 0) / (width // heads))


def _model(config, tensors) -> LM:
  fields.only(config, 'max_position_embeddings', 0)
  (vocab, width), layer = _sized(tensors, TABLE, 2), config.get('layer') or {}
  if config.get('model_type') == 'hyenadna' and not layer:             # the class in transformers' layout: fixed features of positions
    layer = dict(w=config.get('activation_freq', 10), lr_pos_emb=0.0)
  depth = 1 + max((int(key.split('.')[2]) for key in tensors if re.match(r'backbone\.layers\.\d+\.', key)), default=0)

  def block(index):
    at = f'backbone.layers.{index}.'
    of = (_attention_of if f'{at}mixer.Wqkv.weight' in tensors else h3_of if f'{at}mixer.ssm_k_D' in tensors else hyena_of)
    mixer = of(config if of is _attention_of else layer, tensors, f'{at}mixer.')
    return Block(mixer, MLP(_sized(tensors, f'{at}mlp.fc1.weight', 2)[0], 'gelu_tanh', start=0.02))
  blocks = [block(index) for index in range(depth)]
  return LM(vocab=vocab, width=width, depth=depth, pattern=tuple(blocks[:fields.period(blocks)]), norm=LayerNorm(config.get('layer_norm_epsilon', 1e-5)),
            embedding=Embedding(size=0.02), head=Head(tied=fields.tied({}, tensors, True, TABLE, HEAD)))


def _config(model: LM) -> dict:
  mixers, channel = [block.mixer for block in model.blocks], model.blocks[0].channel
  if any(not isinstance(block.mixer, Hyena | H3 | Attention) or not isinstance(block.channel, MLP) for block in model.blocks):
    raise UserError('the model is none of safari\'s: its blocks are not Hyena, H3 or Attention and MLP')
  config = dict(d_model=model.width, n_layer=model.depth, d_inner=channel.hidden, vocab_size=model.vocab, pad_vocab_size_multiple=1,
                layer_norm_epsilon=model.norm.eps, max_position_embeddings=0)
  if at := [index for index, mixer in enumerate(mixers) if isinstance(mixer, Attention)]:
    attention = mixers[at[0]]
    config |= dict(attn_layer_idx=at, attn_cfg=dict(num_heads=attention.heads, causal=True, rotary_emb_base=attention.theta,
                                                    rotary_emb_dim=int(attention.rotary_fraction * attention.head_dim)))
  for mixer in mixers:
    if isinstance(mixer, Hyena):
      return config | dict(layer=_hyena_config(mixer))
    if isinstance(mixer, H3):
      return config | dict(layer=dict(_name_='h3', d_state=mixer.state, head_dim=mixer.head_dim, mode='diag', measure='diag-lin',
                                      disc='zoh' if mixer.hold else 'bilinear'))
  return config


def _implicit(mixer: Hyena) -> ImplicitFilter:
  """Its filter, the one kind that their files hold."""
  if not isinstance(mixer.filter, ImplicitFilter) or mixer.heads != 1:
    raise UserError(f'safari\'s Hyena has an ImplicitFilter and heads=1; this one filter={mixer.filter} and heads={mixer.heads}')
  return mixer.filter


def _hyena_config(mixer: Hyena) -> dict:
  made = _implicit(mixer)
  return dict(
      _name_='hyena', l_max=made.l_max, order=mixer.order, short_filter_order=mixer.conv_width, filter_order=made.width, emb_dim=made.emb_dim,
      num_inner_mlps=made.inner_layers, w=made.frequency, modulate=made.modulate, target=made.target, fast_decay_pct=made.fast,
      slow_decay_pct=made.slow, shift=made.shift, normalized=made.normalised) | (
          {} if made.position_rate else dict(lr_pos_emb=0.0)) | (dict(modulation_lr=1e-5) if made.window_rate else {})


# From tensors to parameters.

def _filter_rules(made: ImplicitFilter, channels: int) -> list[tuple]:
  copies = made.inner_layers + 1
  shared = Turn(lambda *copy: copy[0].ravel(), lambda x: (x[None],) * copies)
  rules = [(tuple(SINE.format(2 * i + 1) for i in range(copies)), 'frequency', shared),
           (f'implicit_filter.{2 * copies}.weight', 'w_out', TRANSPOSED), ('pos_emb.z', 'z', SAME), ('modulation.deltas', 'delta', shaped(1, 1, channels))]
  for i in range(copies):
    rules += [(f'implicit_filter.{2 * i}.weight', f'w_{i}', TRANSPOSED), (f'implicit_filter.{2 * i}.bias', f'b_{i}', SAME)]
  return rules


def _hyena_rules(mixer: Hyena, width: int) -> list[tuple]:
  names = [*(f'g{i}' for i in range(mixer.order)), 'v']
  ours = lambda kind: tuple(f'mixer/{kind}_{name}' for name in names)
  flat = joined(len(names))
  kernels = Turn(lambda x: flat.ours(DEPTHWISE.ours(x)), lambda *parts: DEPTHWISE.theirs(flat.theirs(*parts)))
  prefixed = lambda keys: tuple(f'filter_fn.{key}' for key in keys) if isinstance(keys, tuple) else f'filter_fn.{keys}'
  return [('in_proj.weight', ours('w'), joined(len(names), transposed=True)), ('in_proj.bias', ours('b'), flat),
          ('short_filter.weight', ours('conv'), kernels), ('short_filter.bias', ours('b_conv'), flat),
          ('filter_fn.bias', 'mixer/skip', SAME), ('out_proj.weight', 'mixer/w_out', TRANSPOSED), ('out_proj.bias', 'mixer/b_out', SAME),
          *((prefixed(theirs), f'mixer/filter/{path}', turn) for theirs, path, turn in _filter_rules(_implicit(mixer), width * (mixer.order - 1)))]


H3_RULES = [
    *((f'{name}_proj.weight', f'mixer/w_{name}', TRANSPOSED) for name in 'qkv'), *((f'{name}_proj.bias', f'mixer/b_{name}', SAME) for name in 'qkv'),
    ('output_linear.weight', 'mixer/w_out', TRANSPOSED), ('output_linear.bias', 'mixer/b_out', SAME),
    ('ssm_k_kernel.kernel.B', 'mixer/shift_b', TRANSPOSED), ('ssm_k_kernel.kernel.C', 'mixer/shift_c', ONE_CHANNEL), ('ssm_k_D', 'mixer/shift_skip', SAME),
    ('kernel.kernel.B', 'mixer/filter/b', TRANSPOSED), ('kernel.kernel.C', 'mixer/filter/c', ONE_CHANNEL), ('D', 'mixer/skip', SAME),
    ('kernel.kernel.inv_A_real', 'mixer/filter/inv_a_real', TRANSPOSED), ('kernel.kernel.A_imag', 'mixer/filter/a_imag', TRANSPOSED),
    ('kernel.kernel.log_dt', 'mixer/filter/log_dt', SAME)]
ATTENTION_RULES = [
    ('Wqkv.weight', ('mixer/w_q', 'mixer/w_k', 'mixer/w_v'), joined(3, transposed=True)), ('Wqkv.bias', ('mixer/b_q', 'mixer/b_k', 'mixer/b_v'), joined(3)),
    ('out_proj.weight', 'mixer/w_o', TRANSPOSED), ('out_proj.bias', 'mixer/b_o', SAME)]


def _rules(model: LM) -> list[Rule]:
  rules = [Rule(TABLE, 'embedding/table'), Rule(HEAD, 'embedding/table') if model.head.tied else Rule(HEAD, 'head/weight', TRANSPOSED)]
  for mixer in dict.fromkeys(block.mixer for block in model.blocks):
    own = _hyena_rules(mixer, model.width) if isinstance(mixer, Hyena) else H3_RULES if isinstance(mixer, H3) else ATTENTION_RULES
    whole = lambda keys: tuple(f'{LAYER}mixer.{key}' for key in keys) if isinstance(keys, tuple) else f'{LAYER}mixer.{keys}'
    rules += [Rule(whole(theirs), ours, turn, mixer=type(mixer)) for theirs, ours, turn in own]
  for theirs, ours in (('fc1', 'up'), ('fc2', 'down')):
    rules += [Rule(f'{LAYER}mlp.{theirs}.weight', f'channel/w_{ours}', TRANSPOSED), Rule(f'{LAYER}mlp.{theirs}.bias', f'channel/b_{ours}')]
  for theirs, ours in ((f'{LAYER}norm1', 'norm_mixer'), (f'{LAYER}norm2', 'norm_channel'), ('backbone.ln_f', 'norm')):
    rules += [Rule(f'{theirs}.weight', f'{ours}/scale'), Rule(f'{theirs}.bias', f'{ours}/bias')]
  return rules


def _constants(model: LM) -> dict[str, np.ndarray]:
  """Time from 0 to 1, one copy per filter."""
  filters = {index: block.mixer.filter for index, block in enumerate(model.blocks) if isinstance(block.mixer, Hyena)}
  return {f'backbone.layers.{index}.mixer.filter_fn.pos_emb.t': np.linspace(0, 1, made.l_max, dtype=np.float32)[None, :, None]
          for index, made in filters.items()}


def _recognise(mark: str, config, tensors) -> bool:
  return any(re.match(r'(.*\.)?(backbone|encoder)\.layers\.\d+\.mixer\.', key) and key.endswith(mark) for key in tensors)


HYENA = Format(lambda config, tensors: _recognise('filter_fn.pos_emb.z', config, tensors), _model, _rules, _config, head=HEAD,
               constants=_constants, renamed=renamed)
H3_FORMAT = Format(lambda config, tensors: _recognise('mixer.ssm_k_D', config, tensors), _model, _rules, _config, head=HEAD,
                   ignored=(r'.*\.rotary_emb\.inv_freq',), renamed=renamed)
