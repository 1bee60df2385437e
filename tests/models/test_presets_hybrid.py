"""The hybrids have the published patterns, and Qwen3.5 the published numbers of parameters."""

import pytest

from ssmlab.interop import qwen as files
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.kda import KDA
from ssmlab.mixers.mamba1 import Mamba1
from ssmlab.models.presets.hybrid import SIZES_QWEN3_5, jamba, kimi_linear, qwen3_5

# Text parameters; vision tower; multi-token prediction; all elements: the safetensors of huggingface.co/Qwen/Qwen3.5-*.
CHECKPOINTS = {'2B': (1_881_825_088, 331_416_576, 60_828_160, 2_274_069_824), '4B': (4_205_751_296, 333_514_240, 120_599_552, 4_659_865_088),
               '9B': (8_953_803_264, 456_010_480, 243_290_624, 9_653_104_368)}

# text_config of the same, without what transformers does not need of it.
RELEASED = {'0.8B': dict(hidden_size=1024, num_hidden_layers=24, intermediate_size=3584, num_attention_heads=8, num_key_value_heads=2,
                         linear_num_value_heads=16, tie_word_embeddings=True),
            '4B': dict(hidden_size=2560, num_hidden_layers=32, intermediate_size=9216, num_attention_heads=16, num_key_value_heads=4,
                       linear_num_value_heads=32, tie_word_embeddings=True),
            '9B': dict(hidden_size=4096, num_hidden_layers=32, intermediate_size=12288, num_attention_heads=16, num_key_value_heads=4,
                       linear_num_value_heads=32, tie_word_embeddings=False)}
SHARED = dict(vocab_size=248320, head_dim=256, linear_num_key_heads=16, linear_key_head_dim=128, linear_value_head_dim=128,
              linear_conv_kernel_dim=4, rms_norm_eps=1e-6, full_attention_interval=4, attention_bias=False,
              rope_parameters=dict(rope_type='default', rope_theta=10000000, partial_rotary_factor=0.25))


@pytest.mark.parametrize('size', CHECKPOINTS)
def test_qwens_checkpoints(size):
  text, vision, prediction, everything = CHECKPOINTS[size]
  assert qwen3_5(size).size() == text == everything - vision - prediction


@pytest.mark.parametrize('size, text', [('0.8B', 752_393_024), ('27B', 26_895_998_464)])
def test_qwens_text_parameters(size, text):
  """Of transformers' Qwen3_5ForCausalLM with the released weights, which has neither vision tower nor multi-token prediction."""
  assert qwen3_5(size).size() == text


@pytest.mark.parametrize('size', RELEASED)
def test_qwen_is_what_its_config_loads_as(size):
  ours, loaded = qwen3_5(size), files._model('qwen3_5_text', SHARED | RELEASED[size], {})
  same = lambda model: (model.blocks, model.vocab, model.width, model.norm, model.embedding, model.head)
  assert same(ours) == same(loaded)


def test_kimis_pattern():
  """arXiv 2510.26692, section 4: three KDA, one full attention without positions, heads of 128."""
  model = kimi_linear(20, 1536, 20)
  assert [type(block.mixer) for block in model.blocks] == [KDA, KDA, KDA, Attention] * 5
  assert {(block.mixer.heads, block.mixer.head_dim) for block in model.blocks} == {(20, 128)} and model.blocks[3].mixer.rotary_fraction == 0
  assert {block.channel.hidden for block in model.blocks} == {4 * 1536}


def test_jambas_pattern():
  """arXiv 2403.19887: one attention layer in eight; Jamba-v0.1's config.json has attn_layer_period 8 and attn_layer_offset 4."""
  model = jamba(32, 4096)
  attention = [layer for layer, block in enumerate(model.blocks) if isinstance(block.mixer, Attention)]
  assert attention == [layer for layer in range(32) if layer % 8 == 4]
  assert all(isinstance(block.mixer, Mamba1) for layer, block in enumerate(model.blocks) if layer not in attention)
  full = model.blocks[4].mixer
  assert (full.heads, full.kv_heads, full.rotary_fraction) == (32, 8, 0) and {block.channel.hidden for block in model.blocks} == {14336}


def test_what_is_refused():
  with pytest.raises(ValueError, match=f"qwen3_5: size '35B' is not one of {', '.join(SIZES_QWEN3_5)}"):
    qwen3_5('35B')
  with pytest.raises(ValueError, match='jamba: width=768 is not a multiple of 512'):
    jamba(8, 768)
