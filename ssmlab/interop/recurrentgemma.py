"""RecurrentGemma in Hugging Face's layout.  transformers, models/recurrent_gemma/modeling_recurrent_gemma.py and its configuration.

What a config leaves out has transformers' defaults.  Norm weights are stored as w with scale 1 + w; so are ours (zero_centred).
"""

from ssmlab.core.config import UserError
from ssmlab.interop import fields
from ssmlab.interop.mapping import DEPTHWISE, LAST_TWO, TRANSPOSED, Format, Rule, shaped
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.rglru import RGLRU
from ssmlab.models.lm import LM, Block

KINDS = {'recurrent': 'recurrent', 'linear_attention': 'recurrent', 'attention': 'attention', 'sliding_attention': 'attention'}


def _recognise(config, tensors) -> bool:
  return (config or {}).get('model_type') == 'recurrent_gemma' or 'model.layers.0.temporal_pre_norm.weight' in tensors


def _kinds(config, depth: int) -> list[str]:
  """'recurrent' or 'attention' for every layer: a list of them all (names since transformers 5), or a pattern to repeat."""
  given = next((config[name] for name in ('layer_types', 'layers_block_type', 'block_types', '_block_types') if config.get(name)),
               ('recurrent', 'recurrent', 'attention'))
  for kind in given:
    if kind not in KINDS:
      raise UserError(f'config: block type {kind!r} is not supported; allowed: {", ".join(KINDS)}')
  return [KINDS[given[layer % len(given)]] for layer in range(depth)]


def _model(config, tensors) -> LM:
  width, heads = config.get('hidden_size', 2560), config.get('num_attention_heads', 10)
  depth, theta_fraction = config.get('num_hidden_layers', 26), fields.rope(config, fraction=0.5)
  hidden = config.get('intermediate_size') or 3 * width
  fields.only(config, 'hidden_activation', 'gelu_pytorch_tanh', 'gelu_new')           # also of the recurrent block, where ours is fixed
  channel = GatedMLP(hidden // 2, bias=True, activation='gelu_tanh')
  mixers = dict(
      recurrent=RGLRU(inner=config.get('lru_width') or width, heads=heads, conv_width=config.get('conv1d_width', 4)),
      attention=Attention(
          heads=heads, head_dim=config.get('head_dim') or width // heads, kv_heads=config.get('num_key_value_heads') or heads,
          window=config.get('attention_window_size', 2048), theta=theta_fraction[0], rotary_fraction=theta_fraction[1],
          bias=bool(config.get('attention_bias', False)), output_bias=True))
  kinds = _kinds(config, depth)
  tied = fields.tied(config, tensors, True, 'model.embed_tokens.weight', 'lm_head.weight')
  return LM(vocab=config.get('vocab_size', 256000), width=width, depth=depth,
            pattern=tuple(Block(mixers[kind], channel) for kind in kinds[:fields.period(kinds)]),
            norm=RMSNorm(config.get('rms_norm_eps', 1e-6), zero_centred=True), embedding=Embedding(scale=fields.bfloat16_sqrt(width)),
            head=Head(tied=tied, softcap=config.get('logits_soft_cap', 30.0)))


def _config(model: LM) -> dict:
  """config.json; sizes of a kind of block that the model does not have are left to transformers' defaults."""
  if any(not isinstance(block.mixer, RGLRU | Attention) or not isinstance(block.channel, GatedMLP) for block in model.blocks):
    raise UserError('the model is not a RecurrentGemma: its blocks are not RGLRU or Attention and GatedMLP')
  kinds = ['recurrent' if isinstance(block.mixer, RGLRU) else 'attention' for block in model.blocks]
  of = {kind: block.mixer for kind, block in zip(kinds, model.blocks)}
  config = dict(
      model_type='recurrent_gemma', architectures=['RecurrentGemmaForCausalLM'], vocab_size=model.vocab, hidden_size=model.width,
      num_hidden_layers=model.depth, intermediate_size=2 * model.blocks[0].channel.hidden, rms_norm_eps=model.norm.eps,
      hidden_activation='gelu_pytorch_tanh', logits_soft_cap=model.head.softcap,
      tie_word_embeddings=model.head.tied, block_types=kinds)
  if 'recurrent' in of:
    config |= dict(num_attention_heads=of['recurrent'].heads, lru_width=of['recurrent'].inner, conv1d_width=of['recurrent'].conv_width)
  if 'attention' in of:
    attention = of['attention']
    rope = dict(rope_theta=attention.theta, partial_rotary_factor=attention.rotary_fraction)
    config |= dict(num_attention_heads=attention.heads, num_key_value_heads=attention.kv_heads, head_dim=attention.head_dim,
                   attention_window_size=attention.window, attention_bias=attention.bias, **rope, rope_parameters=rope | dict(rope_type='default'))
  return config


def _rules(model: LM) -> list[Rule]:
  at, recurrent = 'model.layers.{layer}.', 'model.layers.{layer}.temporal_block.'
  maps = {f'temporal_block.linear_{name}': (f'mixer/w_{name}', f'mixer/b_{name}') for name in ('x', 'y', 'out')}
  maps |= {f'temporal_block.{name}_proj': (f'mixer/w_{name}', f'mixer/b_{name}') for name in 'qkvo'}
  maps |= {f'mlp_block.{name}_proj': (f'channel/w_{name}', f'channel/b_{name}') for name in ('gate', 'up', 'down')}
  rules = [Rule(f'{at}{name}.weight', weight, TRANSPOSED) for name, (weight, _) in maps.items()]
  rules += [Rule(f'{at}{name}.bias', bias) for name, (_, bias) in maps.items()]
  for mixer in {block.mixer for block in model.blocks if isinstance(block.mixer, RGLRU)}:
    for theirs, ours in (('input', 'input'), ('recurrent', 'recurrence')):
      rules += [Rule(f'{recurrent}rg_lru.{theirs}_gate_weight', f'mixer/w_{ours}_gate'),
                Rule(f'{recurrent}rg_lru.{theirs}_gate_bias', f'mixer/b_{ours}_gate', shaped(mixer.heads, mixer.inner // mixer.heads))]
  return rules + [
      Rule(f'{recurrent}conv_1d.weight', 'mixer/conv', DEPTHWISE), Rule(f'{recurrent}conv_1d.bias', 'mixer/b_conv'),
      Rule(f'{recurrent}rg_lru.recurrent_param', 'mixer/decay'),
      Rule(f'{at}temporal_pre_norm.weight', 'norm_mixer/scale'), Rule(f'{at}channel_pre_norm.weight', 'norm_channel/scale'),
      Rule('model.embed_tokens.weight', 'embedding/table'), Rule('model.final_norm.weight', 'norm/scale'),
      Rule('lm_head.weight', 'head/weight', TRANSPOSED)]


def _states(model: LM, tokens: int) -> list[Rule]:
  """Of the recurrent layers: the convolution's last inputs, oldest first, lie [channels, width - 1]."""
  return [Rule('{layer}.rglru', 'mixer/h'), Rule('{layer}.conv', 'mixer/conv', LAST_TWO)]


FORMAT = Format(_recognise, _model, _rules, _config, head='lm_head.weight',
                ignored=(r'.*\.rotary_emb\.inv_freq', r'model\.normalizer'), states=_states)
