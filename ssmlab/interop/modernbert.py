"""ModernBERT.  transformers, models/modernbert/modeling_modernbert.py; AnswerDotAI/ModernBERT, src/bert_layers.

The rotary settings stand in `global_rope_theta`, `local_rope_theta` and `global_attn_every_n_layers` (published files) or in
`rope_parameters` and `layer_types` (transformers 5).
"""

from ssmlab.core.config import UserError
from ssmlab.interop import fields
from ssmlab.interop.mapping import TRANSPOSED, Arrays, Format, Rule, joined
from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Classifier, Embedding, MaskedHead
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.attention import Attention
from ssmlab.models.encoder import Encoder
from ssmlab.models.stack import Block

TABLE, DECODER = 'model.embeddings.tok_embeddings.weight', 'decoder.weight'
FULL, LOCAL = 'full_attention', 'sliding_attention'
THETA = {FULL: ('global_rope_theta', 160000.0), LOCAL: ('local_rope_theta', 10000.0)}


def _recognise(config, tensors) -> bool:
  return (config or {}).get('model_type') == 'modernbert'


def _renamed(tensors: Arrays) -> Arrays:
  """Files of a bare trunk lack the prefix."""
  trunk = ('embeddings.', 'layers.', 'final_norm.')
  return {f'model.{key}' if key.startswith(trunk) else key: value for key, value in tensors.items()}


def _theta(config, kind: str) -> float:
  said = (config.get('rope_parameters') or {}).get(kind) or {}
  if said.get('rope_type', 'default') != 'default':
    raise UserError(f"config: rotary scaling {said['rope_type']!r} is not supported; allowed: 'default'")
  name, default = THETA[kind]
  value = said.get('rope_theta', config.get(name))
  return float(_theta(config, FULL) if value is None and kind == LOCAL and name in config else default if value is None else value)


def _kinds(config, depth: int) -> list[str]:
  every = config.get('global_attn_every_n_layers', 3)
  kinds = config.get('layer_types') or [LOCAL if index % every else FULL for index in range(depth)]
  if len(kinds) != depth or set(kinds) - {FULL, LOCAL}:
    raise UserError(f'config: layer_types={kinds} must be {depth} of {FULL!r}, {LOCAL!r}')
  return kinds


def _model(config, tensors) -> Encoder:
  width, heads, depth = (fields.need(config, name) for name in ('hidden_size', 'num_attention_heads', 'num_hidden_layers'))
  act, start = fields.activation(config, 'hidden_activation', 'gelu'), config.get('initializer_range', 0.02)
  norm = LayerNorm(config.get('norm_eps', 1e-5), bias=bool(config.get('norm_bias', False)))
  attention = lambda kind: Attention(
      heads=heads, head_dim=width // heads, bias=bool(config.get('attention_bias', False)), output_bias=bool(config.get('attention_bias', False)),
      theta=_theta(config, kind), causal=False, window=None if kind == FULL else config.get('local_attention', 128) // 2 + 1, start=start)
  channel = GatedMLP(fields.need(config, 'intermediate_size'), act, bias=bool(config.get('mlp_bias', False)), start=start,
                     dropout=config.get('mlp_dropout', 0.0))
  kinds = _kinds(config, depth)
  head = classifier = None
  if 'classifier.weight' in tensors and 'decoder.bias' not in tensors:
    classifier = Classifier(len(tensors['classifier.weight']), fields.activation(config, 'classifier_activation', 'gelu'),
                            'first' if fields.only(config, 'classifier_pooling', 'cls', 'mean') == 'cls' else 'mean',
                            bias=bool(config.get('classifier_bias', False)), norm=norm, dropout=config.get('classifier_dropout', 0.0), start=start)
  elif 'head.dense.weight' in tensors or not tensors:
    fields.only(config, 'decoder_bias', True)
    head = MaskedHead(norm, fields.activation(config, 'classifier_activation', 'gelu'), dense_bias=bool(config.get('classifier_bias', False)),
                      tied=fields.tied(config, tensors, True, TABLE, DECODER), start=start)
  return Encoder(
      vocab=config.get('vocab_size', 50368), width=width, depth=depth, pattern=tuple(Block(attention(kind), channel) for kind in kinds[:fields.period(kinds)]),
      norm=norm, post_norm=False, first_norm=False, embedding=Embedding(size=start, norm=norm), head=head, classifier=classifier,
      embedding_dropout=config.get('embedding_dropout', 0.0), mixer_dropout=config.get('attention_dropout', 0.0))


def _config(model: Encoder) -> dict:
  """config.json as transformers 4 and 5 read it."""
  channel, mixers = model.blocks[0].channel, [block.mixer for block in model.blocks]
  if not isinstance(channel, GatedMLP) or not all(isinstance(mixer, Attention) for mixer in mixers) or model.classifier and model.head:
    raise UserError('the model is not a ModernBERT: its blocks are not Attention and GatedMLP, or it has both a head and a classifier')
  kinds = [FULL if mixer.window is None else LOCAL for mixer in mixers]
  theta = {kind: next((mixer.theta for mixer, its in zip(mixers, kinds) if its == kind), THETA[kind][1]) for kind in (FULL, LOCAL)}
  window = next((mixer.window for mixer in mixers if mixer.window), 65)
  config = dict(
      model_type='modernbert', architectures=['ModernBertForMaskedLM' if model.head else 'ModernBertModel'], vocab_size=model.vocab,
      hidden_size=model.width, num_hidden_layers=model.depth, num_attention_heads=mixers[0].heads, intermediate_size=channel.hidden,
      hidden_activation=fields.activation_name(channel.activation), norm_eps=model.norm.eps, norm_bias=model.norm.bias,
      pad_token_id=50283 if model.vocab > 50283 else None,
      attention_bias=mixers[0].bias, mlp_bias=channel.bias, mlp_dropout=channel.dropout, embedding_dropout=model.embedding_dropout,
      attention_dropout=model.mixer_dropout, initializer_range=model.embedding.size, local_attention=2 * (window - 1), layer_types=kinds,
      global_attn_every_n_layers=fields.period(kinds), global_rope_theta=theta[FULL], local_rope_theta=theta[LOCAL],
      rope_parameters={kind: dict(rope_type='default', rope_theta=value) for kind, value in theta.items()})
  if last := model.classifier:
    names = [f'LABEL_{index}' for index in range(last.labels)]
    return config | dict(architectures=['ModernBertForSequenceClassification'], classifier_activation=fields.activation_name(last.activation),
                         classifier_pooling=dict(first='cls').get(last.pooling, last.pooling), classifier_bias=last.bias, classifier_dropout=last.dropout,
                         id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})
  if model.head is None:
    return config
  return config | dict(classifier_activation=fields.activation_name(model.head.activation), classifier_bias=model.head.dense_bias, decoder_bias=True,
                       tie_word_embeddings=model.head.tied)


def _rules(model: Encoder) -> list[Rule]:
  at, own, mlp = 'model.layers.{layer}.', 'model.layers.{layer}.attn.', 'model.layers.{layer}.mlp.'
  rules = [Rule(f'{own}Wqkv.weight', ('mixer/w_q', 'mixer/w_k', 'mixer/w_v'), joined(3, transposed=True)),
           Rule(f'{own}Wqkv.bias', ('mixer/b_q', 'mixer/b_k', 'mixer/b_v'), joined(3)),
           Rule(f'{mlp}Wi.weight', ('channel/w_gate', 'channel/w_up'), joined(2, transposed=True)),
           Rule(f'{mlp}Wi.bias', ('channel/b_gate', 'channel/b_up'), joined(2)),
           Rule(f'{own}Wo.weight', 'mixer/w_o', TRANSPOSED), Rule(f'{own}Wo.bias', 'mixer/b_o'),
           Rule(f'{mlp}Wo.weight', 'channel/w_down', TRANSPOSED), Rule(f'{mlp}Wo.bias', 'channel/b_down'),
           Rule(TABLE, 'embedding/table'), Rule('decoder.bias', 'head/bias'), Rule(DECODER, 'head/weight', TRANSPOSED),
           Rule('classifier.weight', 'classifier/weight', TRANSPOSED), Rule('classifier.bias', 'classifier/bias')]
  part, names = ('head', ('w_dense', 'b_dense')) if model.classifier is None else ('classifier', ('w_pool', 'b_pool'))
  rules += [Rule('head.dense.weight', f'{part}/{names[0]}', TRANSPOSED), Rule('head.dense.bias', f'{part}/{names[1]}')]
  norms = {f'{at}attn_norm': 'norm_mixer', f'{at}mlp_norm': 'norm_channel', 'model.embeddings.norm': 'embedding/norm',
           'model.final_norm': 'norm', 'head.norm': f'{part}/norm'}
  return rules + [Rule(f'{theirs}.{name}', f'{ours}/{mine}') for theirs, ours in norms.items() for name, mine in (('weight', 'scale'), ('bias', 'bias'))]


FORMAT = Format(_recognise, _model, _rules, _config, head=DECODER, renamed=_renamed)
