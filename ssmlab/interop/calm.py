"""CALM's checkpoints: shaochenze/calm, models/modeling_autoencoder.py, modeling_energy.py, modeling_flow.py and modeling_diffusion.py.

Files hold the autoencoder's table and, in language models, the energy head twice; copies are checked on import and written on export.
"""

from collections.abc import Iterator

import numpy as np

from ssmlab.core.config import UserError
from ssmlab.interop import fields
from ssmlab.interop.mapping import TRANSPOSED, Arrays, Format, Rule, Turn
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.attention import Attention
from ssmlab.models.calm import CALM, Autoencoder, DiffusionHead, EnergyHead, FlowHead
from ssmlab.models.lm import Block

TWICE = Turn(lambda first, second: first, lambda ours: (ours, ours))
TWICE_TRANSPOSED = Turn(lambda first, second: np.transpose(first), lambda ours: (np.transpose(ours),) * 2)
TABLE, COPY = 'encoder.embed_tokens.weight', 'decoder.lm_head_weight'
HEAD, HEAD_COPY = 'generative_head.', 'mlp_generator.'


def _linear(theirs: str, ours: str) -> list[Rule]:
  return [Rule(f'{theirs}.weight', f'{ours}/w', TRANSPOSED), Rule(f'{theirs}.bias', f'{ours}/b')]


def _norm(theirs: str, ours: str) -> list[Rule]:
  return [Rule(f'{theirs}.weight', f'{ours}/scale'), Rule(f'{theirs}.bias', f'{ours}/bias')]


# The autoencoder.

def autoencoder_of(config: dict) -> Autoencoder:
  """The authors' AutoencoderConfig."""
  fields.only(config, 'hidden_act', 'silu')
  fields.only(config, 'mlp_bias', False)
  need = lambda name: fields.need(config, name)
  return Autoencoder(vocab=need('vocab_size'), chunk=need('patch_size'), width=need('hidden_size'), hidden=need('intermediate_size'),
                     latent=need('latent_size'), encoder_layers=need('num_encoder_layers'), decoder_layers=need('num_decoder_layers'),
                     dropout=float(config.get('ae_dropout', 0.15)), eps=float(config.get('rms_norm_eps', 1e-6)))


def _autoencoder_config(model: Autoencoder) -> dict:
  return dict(model_type='autoencoder', patch_size=model.chunk, vocab_size=model.vocab, hidden_size=model.width, intermediate_size=model.hidden,
              num_encoder_layers=model.encoder_layers, num_decoder_layers=model.decoder_layers, latent_size=model.latent, ae_dropout=model.dropout,
              rms_norm_eps=model.eps, hidden_act='silu', mlp_bias=False)


def autoencoder_rules(model: Autoencoder, theirs: str = '', ours: str = '') -> list[Rule]:
  """theirs, ours: what stands before the keys and the paths, in a language model."""
  rules = [Rule((theirs + TABLE, theirs + COPY), f'{ours}embedding/table', TWICE)]
  for half, layers in (('encoder', model.encoder_layers), ('decoder', model.decoder_layers)):
    for index in range(layers):
      at, mine = f'{theirs}{half}.{half}_layers.{index}.', f'{ours}{half}/layers/{index}/'
      rules.append(Rule(f'{at}layernorm.weight', f'{mine}norm/scale'))
      rules += [Rule(f'{at}mlp.{name}_proj.weight', f'{mine}mlp/w_{name}', TRANSPOSED) for name in ('gate', 'up', 'down')]
    rules.append(Rule(f'{theirs}{half}.norm.weight', f'{ours}{half}/norm/scale'))
  for name, path in (('encoder.squeeze_layer', 'encoder/squeeze'), ('encoder.hidden_to_latent', 'encoder/latent'),
                     ('decoder.latent_to_hidden', 'decoder/latent'), ('decoder.expand_layer', 'decoder/expand')):
    rules += _linear(theirs + name, ours + path)
  return rules


def with_copies(tensors: Arrays) -> Arrays:
  """The tensors with both names of whatever files hold twice.  Raises UserError where the two differ."""
  added = {}
  for key, array in tensors.items():
    for one, other in ((TABLE, COPY), (COPY, TABLE), (HEAD, HEAD_COPY), (HEAD_COPY, HEAD)):
      if key.endswith(one) if one in (TABLE, COPY) else key.startswith(one):
        copy = key.replace(one, other)
        if copy not in tensors:
          added[copy] = array
        elif not np.array_equal(tensors[copy], array):
          raise UserError(f'tensors {key!r} and {copy!r} should be the same but differ')
  if any(key.startswith(f'{HEAD}net.') for key in tensors):                # flow and diffusion heads have one name
    added = {key: array for key, array in added.items() if not key.startswith(HEAD_COPY)}
  return {**tensors, **added}


# The heads.

def energy_rules(head: EnergyHead, theirs: str = '') -> list[Rule]:
  """theirs: what stands before the keys, `generative_head.` in checkpoints.  Paths begin with head/."""
  rules = _linear('noise_embd', 'head/noise') + _linear('hidden_embd', 'head/hidden')
  rules += _norm('norm_noise', 'head/norm_noise') + _norm('norm_hidden', 'head/norm_hidden')
  for index in range(head.blocks):
    at, mine = f'mlp_blocks.{index}.', f'head/blocks/{index}/'
    rules += _norm(f'{at}in_ln', f'{mine}norm') + _linear(f'{at}down_proj', f'{mine}down')
    rules += [rule for number, name in ((0, 'first'), (2, 'second'), (4, 'gates')) for rule in _linear(f'{at}linears.{number}', mine + name)]
  rules += _norm('final_layer.in_ln', 'head/final/norm')
  rules += _linear('final_layer.linears.0', 'head/final/first') + _linear('final_layer.linears.2', 'head/final/last')
  return [Rule(theirs + rule.theirs, rule.ours, rule.turn) for rule in rules]


def network_rules(head: FlowHead | DiffusionHead, theirs: str = '') -> list[Rule]:
  """As `energy_rules`, of the network that flow and diffusion share."""
  rules = _linear('time_embed.mlp.0', 'head/time_first') + _linear('time_embed.mlp.2', 'head/time_second')
  rules += _linear('cond_embed', 'head/condition') + _linear('input_proj', 'head/input')
  for index in range(head.blocks):
    at, mine = f'res_blocks.{index}.', f'head/blocks/{index}/'
    rules += _norm(f'{at}in_ln', f'{mine}norm') + _linear(f'{at}adaLN_modulation.1', f'{mine}modulation')
    rules += _linear(f'{at}mlp.0', f'{mine}first') + _linear(f'{at}mlp.2', f'{mine}second')
  rules += _linear('final_layer.linear', 'head/last') + _linear('final_layer.adaLN_modulation.1', 'head/modulation')
  return [Rule(f'{theirs}net.{rule.theirs}', rule.ours, rule.turn) for rule in rules]


def head_of(config: dict, kind: str) -> EnergyHead | FlowHead | DiffusionHead:
  """kind: 'energy', 'flow' or 'diffusion', in their config the field `model_type`."""
  blocks, samples = fields.need(config, 'num_mlp_layers'), config.get('num_samples', 8)
  if kind == 'flow':
    return FlowHead(blocks, samples)
  if kind == 'diffusion':
    return DiffusionHead(blocks, samples)
  return EnergyHead(blocks, config.get('noise_size', 64), samples, alpha=float(config.get('beta', 1.0)))


# The language model.

def _count(tensors: Arrays, before: str) -> int:
  return 1 + max((int(key[len(before):].split('.')[0]) for key in tensors if key.startswith(before)), default=-1)


def _autoencoder_in(config: dict, tensors: Arrays) -> Autoencoder:
  """From the tensors' shapes, which say everything but the norms' eps and the dropout."""
  table, squeeze = (_shape(tensors, f'ae_model.{key}') for key in (TABLE, 'encoder.squeeze_layer.weight'))
  layers = {half: _count(tensors, f'ae_model.{half}.{half}_layers.') for half in ('encoder', 'decoder')}
  hidden = next((tensors[key].shape[0] for key in tensors if key.startswith('ae_model.') and key.endswith('.mlp.gate_proj.weight')), 1)
  return Autoencoder(vocab=table[0], width=table[1], chunk=squeeze[1] // table[1], hidden=hidden, latent=_shape(tensors, 'ae_model.decoder.latent_to_hidden.weight')[1],
                     encoder_layers=layers['encoder'], decoder_layers=layers['decoder'])


def _shape(tensors: Arrays, key: str) -> tuple[int, ...]:
  if key not in tensors:
    raise UserError(f'tensor {key!r} is missing')
  return tensors[key].shape


def _kind(config: dict, tensors: Arrays) -> str:
  if f'{HEAD}net.input_proj.weight' not in tensors:
    return 'energy'
  last, into = tensors.get(f'{HEAD}net.final_layer.linear.weight'), tensors[f'{HEAD}net.input_proj.weight']
  return 'diffusion' if last is not None and last.shape[0] == 2 * into.shape[1] else 'flow'


def _model(config: dict, tensors: Arrays) -> CALM:
  need = lambda name: fields.need(config, name)
  width, heads = need('hidden_size'), need('num_attention_heads')
  mixer = Attention(heads=heads, head_dim=width // heads, kv_heads=config.get('num_key_value_heads') or heads, theta=float(config.get('rope_theta', 10000.0)),
                    start=0.02, depth_scaled=False)
  channel = GatedMLP(need('intermediate_size'), start=0.02, depth_scaled=False)
  return CALM(vocab=need('vocab_size'), width=width, depth=need('num_hidden_layers'), pattern=(Block(mixer, channel),),
              norm=RMSNorm(float(config.get('rms_norm_eps', 1e-6))), head=head_of(config, _kind(config, tensors)),
              autoencoder=_autoencoder_in(config, tensors), padding=config.get('pad_token_id'))


def _config(model: CALM) -> dict:
  mixer, channel = model.blocks[0].mixer, model.blocks[0].channel
  if not isinstance(mixer, Attention) or not isinstance(channel, GatedMLP):
    raise UserError("the model is not CALM's Transformer: its blocks are not Attention and GatedMLP")
  energy = isinstance(model.head, EnergyHead)
  kind = 'energy' if energy else 'flow' if isinstance(model.head, FlowHead) else 'diffusion'
  more = dict(noise_size=model.head.noise, beta=model.head.alpha) if energy else {}
  return dict(model_type=kind, patch_size=model.chunk, vocab_size=model.vocab, hidden_size=model.width, intermediate_size=channel.hidden,
              num_hidden_layers=model.depth, num_attention_heads=mixer.heads, num_key_value_heads=mixer.kv_heads or mixer.heads,
              num_mlp_layers=model.head.blocks, latent_size=model.autoencoder.latent, num_samples=model.head.samples, rms_norm_eps=model.norm.eps,
              rope_theta=mixer.theta, pad_token_id=model.padding, **more)


def _rules(model: CALM) -> list[Rule]:
  at = 'transformer.layers.{layer}.'
  rules = [Rule(f'{at}self_attn.{name}_proj.weight', f'mixer/w_{name}', TRANSPOSED) for name in 'qkvo']
  rules += [Rule(f'{at}mlp.{name}_proj.weight', f'channel/w_{name}', TRANSPOSED) for name in ('gate', 'up', 'down')]
  rules += [Rule(f'{at}input_layernorm.weight', 'norm_mixer/scale'), Rule(f'{at}post_attention_layernorm.weight', 'norm_channel/scale'),
            Rule('transformer.embed_tokens.weight', 'embedding/table'), Rule('transformer.norm.weight', 'norm/scale')]
  rules += _linear('embed_proj.0', 'compress/first') + _linear('embed_proj.2', 'compress/second') + _norm('embed_proj.3', 'compress/norm')
  head = _twice(energy_rules(model.head)) if isinstance(model.head, EnergyHead) else network_rules(model.head, HEAD)
  return [*rules, *head, *autoencoder_rules(model.autoencoder, 'ae_model.', 'autoencoder/')]


def _twice(rules: list[Rule]) -> Iterator[Rule]:
  """The rules for files that hold every one of these tensors under two names."""
  for rule in rules:
    yield Rule((HEAD + rule.theirs, HEAD_COPY + rule.theirs), rule.ours, TWICE_TRANSPOSED if rule.turn is TRANSPOSED else TWICE)


AUTOENCODER = Format(lambda config, tensors: 'encoder.squeeze_layer.weight' in tensors, lambda config, tensors: autoencoder_of(config), autoencoder_rules,
                     _autoencoder_config, renamed=with_copies)
FORMAT = Format(lambda config, tensors: 'embed_proj.0.weight' in tensors and 'ae_model.encoder.squeeze_layer.weight' in tensors, _model, _rules, _config,
                ignored=(r'.*\.rotary_emb\.inv_freq',), renamed=with_copies)
