"""GPT-2 in Hugging Face's layout.  transformers, models/gpt2/modeling_gpt2.py; its Conv1D keeps matrices as [in, out]."""

from ssmlab.core.config import UserError
from ssmlab.interop import fields
from ssmlab.interop.mapping import TRANSPOSED, Arrays, Format, Rule, joined
from ssmlab.layers.channel import MLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.attention import Attention
from ssmlab.models.lm import LM, Block

TABLE, HEAD = 'transformer.wte.weight', 'lm_head.weight'


def _recognise(config, tensors) -> bool:
  return (config or {}).get('model_type') == 'gpt2'


def _renamed(tensors: Arrays) -> Arrays:
  """The files on the hub lack the prefix."""
  return {f'transformer.{key}' if key.startswith(('wte.', 'wpe.', 'h.', 'ln_f.')) else key: value for key, value in tensors.items()}


def _model(config, tensors) -> LM:
  for name, value in (('scale_attn_weights', True), ('scale_attn_by_inverse_layer_idx', False), ('add_cross_attention', False)):
    fields.only(config, name, value)
  width, heads, start = fields.need(config, 'n_embd'), fields.need(config, 'n_head'), config.get('initializer_range', 0.02)
  mixer = Attention(heads=heads, head_dim=width // heads, bias=True, output_bias=True, rotary_fraction=0.0, start=start)
  channel = MLP(config.get('n_inner') or 4 * width, fields.activation(config, 'activation_function', 'gelu_new'), start=start)
  return LM(vocab=fields.need(config, 'vocab_size'), width=width, depth=fields.need(config, 'n_layer'), pattern=(Block(mixer, channel),),
            norm=LayerNorm(config.get('layer_norm_epsilon', 1e-5)), embedding=Embedding(size=start, positions=fields.need(config, 'n_positions')),
            head=Head(tied=fields.tied(config, tensors, True, TABLE, HEAD)))


def _config(model: LM) -> dict:
  mixer, channel = model.blocks[0].mixer, model.blocks[0].channel
  if not isinstance(mixer, Attention) or not isinstance(channel, MLP):
    raise UserError('the model is not a GPT-2: its blocks are not Attention and MLP')
  return dict(
      model_type='gpt2', architectures=['GPT2LMHeadModel'], vocab_size=model.vocab, n_embd=model.width, n_head=mixer.heads, n_layer=model.depth,
      n_inner=channel.hidden, n_positions=model.embedding.positions, layer_norm_epsilon=model.norm.eps, initializer_range=model.embedding.size,
      activation_function=fields.activation_name(channel.activation), tie_word_embeddings=model.head.tied)


def _rules(model: LM) -> list[Rule]:
  at = 'transformer.h.{layer}.'
  rules = [Rule(f'{at}attn.c_attn.weight', ('mixer/w_q', 'mixer/w_k', 'mixer/w_v'), joined(3)),
           Rule(f'{at}attn.c_attn.bias', ('mixer/b_q', 'mixer/b_k', 'mixer/b_v'), joined(3)),
           Rule('transformer.wte.weight', 'embedding/table'), Rule('transformer.wpe.weight', 'embedding/positions'),
           Rule(HEAD, 'head/weight', TRANSPOSED)]
  for theirs, weight, bias in (('attn.c_proj', 'mixer/w_o', 'mixer/b_o'), ('mlp.c_fc', 'channel/w_up', 'channel/b_up'),
                               ('mlp.c_proj', 'channel/w_down', 'channel/b_down')):
    rules += [Rule(f'{at}{theirs}.weight', weight), Rule(f'{at}{theirs}.bias', bias)]
  for theirs, ours in ((f'{at}ln_1', 'norm_mixer'), (f'{at}ln_2', 'norm_channel'), ('transformer.ln_f', 'norm')):
    rules += [Rule(f'{theirs}.weight', f'{ours}/scale'), Rule(f'{theirs}.bias', f'{ours}/bias')]
  return rules


FORMAT = Format(_recognise, _model, _rules, _config, head=HEAD, ignored=(r'transformer\.h\.\d+\.attn\.(bias|masked_bias)',), renamed=_renamed)
