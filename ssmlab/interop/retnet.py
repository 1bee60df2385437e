"""RetNet's decoder as torchscale saves it.  microsoft/torchscale, torchscale/architecture/retnet.py and config.py (RetNetConfig).

Sizes are in the shapes; a config, where there is one, uses RetNetConfig's names, and what it leaves out has RetNetConfig's defaults.
"""

import math

import numpy as np

from ssmlab.core.config import UserError
from ssmlab.interop import fields
from ssmlab.interop.mapping import TRANSPOSED, Format, Rule, Turn
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.retention import Retention
from ssmlab.models.lm import LM, Block

TABLE, HEAD, DECAY = 'embed_tokens.weight', 'output_projection.weight', 'retnet_rel_pos.decay'


def _recognise(config, tensors) -> bool:
  return DECAY in tensors or 'decoder_retention_heads' in (config or {})


def _rows(tensors, key: str) -> int:
  if key not in tensors:
    raise UserError(f'tensor {key!r} is missing')
  return tensors[key].shape[0]


def _model(config, tensors) -> LM:
  for name, value in (('deepnorm', False), ('subln', False), ('multiway', False), ('moe_freq', 0), ('decoder_normalize_before', True)):
    fields.only(config, name, value)
  width, vocab = tensors[TABLE].shape[-1] if TABLE in tensors else fields.need(config, 'decoder_embed_dim'), _rows(tensors, TABLE)
  heads = tensors[DECAY].size if DECAY in tensors else fields.need(config, 'decoder_retention_heads')
  depth = 1 + max((int(key.split('.')[1]) for key in tensors if key.startswith('layers.') and key.split('.')[1].isdigit()), default=0)
  eps = config.get('layernorm_eps', 1e-6)
  mixer = Retention(heads=heads, head_dim=_rows(tensors, 'layers.0.retention.q_proj.weight') // heads,
                    value_dim=_rows(tensors, 'layers.0.retention.v_proj.weight') // heads, eps=eps)
  channel = GatedMLP(_rows(tensors, 'layers.0.ffn.fc1.weight'), uniform=True,
                     activation=fields.activation(config, 'activation_fn', 'gelu'))
  shared = config.get('share_decoder_input_output_embed')
  tied = fields.tied(dict(tie_word_embeddings=shared), tensors, False, TABLE, HEAD)
  embedding = Embedding(scale=1.0 if config.get('no_scale_embedding', True) else math.sqrt(width),
                        norm=RMSNorm(eps) if 'layernorm_embedding.weight' in tensors else None)
  return LM(vocab=vocab, width=width, depth=depth, pattern=(Block(mixer, channel),), norm=RMSNorm(eps), embedding=embedding, head=Head(tied=tied))


def _config(model: LM) -> dict:
  mixer, channel = model.blocks[0].mixer, model.blocks[0].channel
  if not isinstance(mixer, Retention) or not isinstance(channel, GatedMLP):
    raise UserError('the model is not a RetNet: its blocks are not Retention and GatedMLP')
  return dict(
      vocab_size=model.vocab, decoder_embed_dim=model.width, decoder_value_embed_dim=mixer.heads * (mixer.value_dim or 2 * mixer.head_dim),
      decoder_retention_heads=mixer.heads, decoder_ffn_embed_dim=channel.hidden, decoder_layers=model.depth,
      activation_fn={'silu': 'swish'}.get(channel.activation, channel.activation), decoder_normalize_before=True, deepnorm=False, subln=False,
      no_scale_embedding=model.embedding.scale == 1.0, layernorm_embedding=model.embedding.norm is not None, layernorm_eps=model.norm.eps,
      share_decoder_input_output_embed=model.head.tied)


def _rules(model: LM) -> list[Rule]:
  at = 'layers.{layer}.'
  maps = {f'retention.{name}_proj': f'mixer/w_{name}' for name in 'qkvg'}
  maps |= {'retention.out_proj': 'mixer/w_o', 'ffn.fc1': 'channel/w_gate', 'ffn.gate': 'channel/w_up', 'ffn.fc2': 'channel/w_down'}
  return [Rule(f'{at}{theirs}.weight', ours, TRANSPOSED) for theirs, ours in maps.items()] + [
      Rule(f'{at}retention_layer_norm.weight', 'norm_mixer/scale'),
      Rule(f'{at}final_layer_norm.weight', 'norm_channel/scale'),             # before the FFN, despite its name
      Rule(TABLE, 'embedding/table'), Rule('layernorm_embedding.weight', 'embedding/norm/scale'),
      Rule('layer_norm.weight', 'norm/scale'), Rule(HEAD, 'head/weight', TRANSPOSED)]


def _constants(model: LM) -> dict[str, np.ndarray]:
  """Rotation and decays, saved as buffers: fixed by the architecture."""
  mixer = model.blocks[0].mixer
  angle = mixer.theta ** -np.linspace(0, 1, mixer.head_dim // 2)
  return {'retnet_rel_pos.angle': np.repeat(angle, 2).astype(np.float32), DECAY: mixer.log_decay.astype(np.float32)}


def _states(model: LM, tokens: int) -> list[Rule]:
  """Their state is divided by sqrt(scale), scale = sum of decay^i over the tokens read, and lies [value, key]."""
  log_decay = model.blocks[0].mixer.log_decay
  scale = np.expm1(tokens * log_decay) / np.expm1(log_decay)
  root = np.sqrt(scale).astype(np.float32)[:, None, None]
  turn = Turn(lambda kv, scale: np.swapaxes(kv, -1, -2) * root,
              lambda retained: (np.swapaxes(retained / root, -1, -2), scale.astype(np.float32)))
  return [Rule(('{layer}.prev_key_value', '{layer}.scale'), 'mixer/retained', turn)]


FORMAT = Format(_recognise, _model, _rules, _config, head=HEAD, constants=_constants, states=_states)
