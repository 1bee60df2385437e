"""Llama and Mistral in Hugging Face's layout.  transformers, models/llama/modeling_llama.py and models/mistral/modeling_mistral.py."""

from ssmlab.core.config import UserError
from ssmlab.interop import fields
from ssmlab.interop.mapping import TRANSPOSED, Format, Rule
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.attention import Attention
from ssmlab.models.lm import LM, Block

TYPES = ('llama', 'mistral')


def _recognise(config, tensors) -> bool:
  config = config or {}
  named = [f'{kind}forcausallm' for kind in TYPES]
  return config.get('model_type') in TYPES or any(name.lower() in named for name in config.get('architectures') or ())


def _model(config, tensors) -> LM:
  mistral = config.get('model_type') == 'mistral'
  width, heads = fields.need(config, 'hidden_size'), fields.need(config, 'num_attention_heads')
  theta, fraction = fields.rope(config)
  biased = bool(config.get('attention_bias', False))
  mixer = Attention(
      heads=heads, head_dim=config.get('head_dim') or width // heads,
      kv_heads=config.get('num_key_value_heads') or (8 if mistral else heads),        # each family's own default
      window=config.get('sliding_window', 4096) if mistral else None,
      theta=theta, rotary_fraction=fraction, bias=biased, output_bias=biased)
  channel = GatedMLP(hidden=fields.need(config, 'intermediate_size'), bias=bool(config.get('mlp_bias', False)),
                     activation=fields.activation(config, 'hidden_act', 'silu'))
  tied = fields.tied(config, tensors, False, 'model.embed_tokens.weight', 'lm_head.weight')
  return LM(vocab=fields.need(config, 'vocab_size'), width=width, depth=fields.need(config, 'num_hidden_layers'),
            pattern=(Block(mixer, channel),), norm=RMSNorm(config.get('rms_norm_eps', 1e-6)), embedding=Embedding(), head=Head(tied=tied))


def _config(model: LM) -> dict:
  """config.json as transformers 4 and 5 read it."""
  mixer, channel = model.blocks[0].mixer, model.blocks[0].channel
  if not isinstance(mixer, Attention) or not isinstance(channel, GatedMLP):
    raise UserError('the model is not a Llama: its blocks are not Attention and GatedMLP')
  kind, name = ('llama', 'LlamaForCausalLM') if mixer.window is None else ('mistral', 'MistralForCausalLM')
  rope = dict(rope_theta=mixer.theta, rope_type='default', partial_rotary_factor=mixer.rotary_fraction)
  config = dict(
      model_type=kind, architectures=[name], vocab_size=model.vocab, hidden_size=model.width, num_hidden_layers=model.depth,
      num_attention_heads=mixer.heads, num_key_value_heads=mixer.kv_heads or mixer.heads, head_dim=mixer.head_dim,
      intermediate_size=channel.hidden, hidden_act=fields.activation_name(channel.activation), rms_norm_eps=model.norm.eps,
      attention_bias=mixer.bias, mlp_bias=channel.bias, tie_word_embeddings=model.head.tied, rope_theta=mixer.theta, rope_parameters=rope)
  return config | ({} if mixer.window is None else dict(sliding_window=mixer.window))


def _rules(model: LM) -> list[Rule]:
  at = 'model.layers.{layer}.'
  maps = {f'self_attn.{name}_proj': (f'mixer/w_{name}', f'mixer/b_{name}') for name in 'qkvo'}
  maps |= {f'mlp.{name}_proj': (f'channel/w_{name}', f'channel/b_{name}') for name in ('gate', 'up', 'down')}
  rules = [Rule(f'{at}{name}.weight', weight, TRANSPOSED) for name, (weight, _) in maps.items()]
  rules += [Rule(f'{at}{name}.bias', bias) for name, (_, bias) in maps.items()]
  return rules + [
      Rule(f'{at}input_layernorm.weight', 'norm_mixer/scale'),
      Rule(f'{at}post_attention_layernorm.weight', 'norm_channel/scale'),
      Rule('model.embed_tokens.weight', 'embedding/table'),
      Rule('model.norm.weight', 'norm/scale'),
      Rule('lm_head.weight', 'head/weight', TRANSPOSED)]


FORMAT = Format(_recognise, _model, _rules, _config, head='lm_head.weight', ignored=(r'.*\.rotary_emb\.inv_freq',))
