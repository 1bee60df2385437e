"""BERT, RoBERTa and MosaicBERT.  transformers, models/bert/modeling_bert.py and models/roberta/modeling_roberta.py; mosaicml/examples,
examples/benchmarks/bert/src/bert_layers.py.

Published files hold a head for masked words, a pooler, a classifier, or some of them; the model has what the file has.  Dropout of
attention's weights (`attention_probs_dropout_prob`) is not computed here.  BERT's next-sentence head is left behind, and so is RoBERTa's
pooler, which nobody trained.
"""

import re

from ssmlab.core.config import UserError
from ssmlab.interop import fields
from ssmlab.interop.mapping import TRANSPOSED, Arrays, Format, Rule, joined
from ssmlab.layers.channel import MLP, GatedMLP
from ssmlab.layers.embedding import Classifier, Embedding, MaskedHead
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.attention import Attention
from ssmlab.models.encoder import Encoder
from ssmlab.models.stack import Block

FUSED = '.attention.self.Wqkv.weight'
TRUNK = ('embeddings.', 'encoder.', 'pooler.')
# Keys of what stands on the trunk: (dense, norm, bias) of the head, (pooler, classifier).
HEADS = {'bert': ('cls.predictions.transform.dense', 'cls.predictions.transform.LayerNorm', 'cls.predictions.bias'),
         'roberta': ('lm_head.dense', 'lm_head.layer_norm', 'lm_head.bias'),
         'mosaicbert': ('cls.predictions.transform.dense', 'cls.predictions.transform.LayerNorm', 'cls.predictions.decoder.bias')}
CLASSIFIERS = {'bert': ('bert.pooler.dense', 'classifier'), 'roberta': ('classifier.dense', 'classifier.out_proj'),
               'mosaicbert': ('bert.pooler.dense', 'classifier')}


def _prefix(kind: str) -> str:
  return 'roberta' if kind == 'roberta' else 'bert'


def _renamed(kind: str, tensors: Arrays) -> Arrays:
  """Keys as transformers writes them today: files of a bare trunk lack the prefix, Composer's have one more, old ones say gamma and beta."""
  def one(key: str) -> str:
    key = re.sub(r'^model\.(?=(bert|cls|classifier)\.)', '', key)
    key = key.replace('LayerNorm.gamma', 'LayerNorm.weight').replace('LayerNorm.beta', 'LayerNorm.bias')
    return f'{_prefix(kind)}.{key}' if key.startswith(TRUNK) else key
  renamed = {one(key): value for key, value in tensors.items()}
  bias = HEADS[kind][2]                                     # the decoder's bias stands under one of two names, or under both
  other = {'bert': 'cls.predictions.decoder.bias', 'roberta': 'lm_head.decoder.bias', 'mosaicbert': 'cls.predictions.bias'}[kind]
  if bias not in renamed and other in renamed:
    renamed[bias] = renamed.pop(other)
  return renamed


def _recognise(kind: str, config, tensors) -> bool:
  if any(key.endswith(FUSED) for key in tensors):
    return kind == 'mosaicbert'
  return (config or {}).get('model_type') == kind


def _model(kind: str, config, tensors) -> Encoder:
  table, dense = f'{_prefix(kind)}.embeddings.word_embeddings.weight', HEADS[kind][0]
  width, heads = fields.need(config, 'hidden_size'), fields.need(config, 'num_attention_heads')
  fields.only(config, 'position_embedding_type', 'absolute', *(('alibi',) if kind == 'mosaicbert' else ()))
  fields.only(config, 'is_decoder', False)
  norm = LayerNorm(config.get('layer_norm_eps', 1e-12 if kind != 'roberta' else 1e-5))
  act, dropout, start = fields.activation(config, 'hidden_act', 'gelu'), config.get('hidden_dropout_prob', 0.1), config.get('initializer_range', 0.02)
  hidden, mosaic = fields.need(config, 'intermediate_size'), kind == 'mosaicbert'
  mixer = Attention(heads=heads, head_dim=width // heads, bias=True, output_bias=True, rotary_fraction=0.0, causal=False, alibi=mosaic,
                    start=start, depth_scaled=False)
  channel = (GatedMLP(hidden, act, output_bias=True, start=start, depth_scaled=False, dropout=dropout) if mosaic
             else MLP(hidden, act, start=start, depth_scaled=False))
  offset = (config.get('pad_token_id', 1) or 0) + 1 if kind == 'roberta' else 0
  embedding = Embedding(size=start, norm=norm, types=config.get('type_vocab_size', 2), offset=offset,
                        positions=0 if mosaic else fields.need(config, 'max_position_embeddings') - offset)
  head = None
  if f'{dense}.weight' in tensors or not tensors:
    head = MaskedHead(norm, act, tied=fields.tied(config, tensors, True, table, _decoder(kind)), start=start)
  return Encoder(
      vocab=tensors[table].shape[0] if mosaic and table in tensors else fields.need(config, 'vocab_size'), width=width,
      depth=fields.need(config, 'num_hidden_layers'), pattern=(Block(mixer, channel),), norm=norm, embedding=embedding, head=head,
      classifier=_classifier(kind, config, tensors, dropout, start), embedding_dropout=dropout, mixer_dropout=dropout,
      channel_dropout=0.0 if mosaic else dropout)


def _classifier(kind: str, config, tensors, dropout: float, start: float) -> Classifier | None:
  pooler, last = (f'{name}.weight' for name in CLASSIFIERS[kind])
  if pooler not in tensors:
    return None
  said = config.get('classifier_dropout')
  return Classifier(len(tensors[last]) if last in tensors else 0, dropout=dropout if said is None else said, start=start)


def _decoder(kind: str) -> str:
  return 'lm_head.decoder.weight' if kind == 'roberta' else 'cls.predictions.decoder.weight'


def _config(kind: str, model: Encoder) -> dict:
  """config.json as transformers reads it; MosaicBERT's own fields beside BERT's."""
  mixer, channel = model.blocks[0].mixer, model.blocks[0].channel
  if not isinstance(mixer, Attention) or not isinstance(channel, GatedMLP if kind == 'mosaicbert' else MLP):
    raise UserError(f'the model is not a {kind}: its blocks are not Attention and {"GatedMLP" if kind == "mosaicbert" else "MLP"}')
  name = {'bert': 'Bert', 'roberta': 'Roberta', 'mosaicbert': 'Bert'}[kind]
  task = 'ForMaskedLM' if model.head else 'ForSequenceClassification' if model.classifier and model.classifier.labels else 'Model'
  config = dict(
      model_type=_prefix(kind), architectures=[name + task], vocab_size=model.vocab, hidden_size=model.width, num_hidden_layers=model.depth,
      num_attention_heads=mixer.heads, intermediate_size=channel.hidden, hidden_act=fields.activation_name(channel.activation),
      layer_norm_eps=model.norm.eps, type_vocab_size=model.embedding.types, hidden_dropout_prob=model.mixer_dropout,
      attention_probs_dropout_prob=0.0, initializer_range=model.embedding.size, tie_word_embeddings=model.head.tied if model.head else True)
  if model.classifier and model.classifier.labels:
    names = [f'LABEL_{index}' for index in range(model.classifier.labels)]         # their number is the number of labels
    config |= dict(id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)},
                   classifier_dropout=model.classifier.dropout)
  if kind == 'mosaicbert':
    return config | dict(alibi_starting_size=512, pad_token_id=0)
  return config | dict(max_position_embeddings=model.embedding.positions + model.embedding.offset,
                       pad_token_id=model.embedding.offset - 1 if kind == 'roberta' else 0)


def _rules(kind: str, model: Encoder) -> list[Rule]:
  at, embeddings = f'{_prefix(kind)}.encoder.layer.{{layer}}.', f'{_prefix(kind)}.embeddings.'
  dense, norm, bias = HEADS[kind]
  pooler, last = CLASSIFIERS[kind]

  def linear(theirs: str, weight: str, offset: str) -> list[Rule]:
    return [Rule(f'{theirs}.weight', weight, TRANSPOSED), Rule(f'{theirs}.bias', offset)]

  def normed(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f'{theirs}.weight', f'{ours}/scale'), Rule(f'{theirs}.bias', f'{ours}/bias')]
  rules = linear(f'{at}attention.output.dense', 'mixer/w_o', 'mixer/b_o') + normed(f'{at}attention.output.LayerNorm', 'norm_mixer')
  if kind == 'mosaicbert':
    own = f'{at}attention.self.Wqkv'
    rules += [Rule(f'{own}.weight', ('mixer/w_q', 'mixer/w_k', 'mixer/w_v'), joined(3, transposed=True)),
              Rule(f'{own}.bias', ('mixer/b_q', 'mixer/b_k', 'mixer/b_v'), joined(3)),
              Rule(f'{at}mlp.gated_layers.weight', ('channel/w_gate', 'channel/w_up'), joined(2, transposed=True))]
    rules += linear(f'{at}mlp.wo', 'channel/w_down', 'channel/b_down') + normed(f'{at}mlp.layernorm', 'norm_channel')
  else:
    for theirs, ours in (('query', 'q'), ('key', 'k'), ('value', 'v')):
      rules += linear(f'{at}attention.self.{theirs}', f'mixer/w_{ours}', f'mixer/b_{ours}')
    rules += linear(f'{at}intermediate.dense', 'channel/w_up', 'channel/b_up') + linear(f'{at}output.dense', 'channel/w_down', 'channel/b_down')
    rules += normed(f'{at}output.LayerNorm', 'norm_channel')
  rules += [Rule(f'{embeddings}{theirs}_embeddings.weight', f'embedding/{ours}')
            for theirs, ours in (('word', 'table'), ('position', 'positions'), ('token_type', 'types'))]
  rules += normed(f'{embeddings}LayerNorm', 'embedding/norm') + linear(dense, 'head/w_dense', 'head/b_dense') + normed(norm, 'head/norm')
  rules += [Rule(bias, 'head/bias'), Rule(_decoder(kind), 'head/weight', TRANSPOSED)]
  return rules + linear(pooler, 'classifier/w_pool', 'classifier/b_pool') + linear(last, 'classifier/weight', 'classifier/bias')


def _format(kind: str, *ignored: str) -> Format:
  return Format(lambda config, tensors: _recognise(kind, config, tensors), lambda config, tensors: _model(kind, config, tensors),
                lambda model: _rules(kind, model), lambda model: _config(kind, model), head=_decoder(kind),
                ignored=(rf'{_prefix(kind)}\.embeddings\.(position|token_type)_ids', *ignored), renamed=lambda tensors: _renamed(kind, tensors))


BERT = _format('bert', r'cls\.seq_relationship\..*', r'cls\.predictions\.decoder\.bias')
ROBERTA = _format('roberta', r'roberta\.pooler\..*', r'lm_head\.decoder\.bias')
MOSAICBERT = _format('mosaicbert', r'cls\.seq_relationship\..*', r'cls\.predictions\.bias')
