"""The Transformer presets have the published numbers of parameters."""

import pytest

from ssmlab.interop import llama as files
from ssmlab.models.presets import llama

# Elements of the released checkpoints: huggingface.co/meta-llama/Llama-2-*, Meta-Llama-3-*, TinyLlama/TinyLlama_v1.1, mistralai/Mistral-7B-v0.1,
# fla-hub/transformer-1.3B-100B (whose count is from its config and keys).
CHECKPOINTS = [
    (llama.llama2, '7B', 6_738_415_616), (llama.llama2, '13B', 13_015_864_320), (llama.llama2, '70B', 68_976_648_192),
    (llama.llama3, '8B', 8_030_261_248), (llama.llama3, '70B', 70_553_706_496), (llama.tinyllama, '1.1B', 1_100_048_384),
    (llama.mistral, '7B', 7_241_732_096), (llama.transformer, '1.3B', 1_364_297_728)]

# What the released config.json of one size of each says, without the fields that transformers does not need.
SHARED = dict(vocab_size=32000, rms_norm_eps=1e-5, hidden_act='silu', tie_word_embeddings=False)
CONFIGS = [
    (llama.llama2, '70B', SHARED | dict(model_type='llama', hidden_size=8192, num_hidden_layers=80, num_attention_heads=64,
                                        num_key_value_heads=8, intermediate_size=28672)),
    (llama.llama3, '8B', SHARED | dict(model_type='llama', hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
                                       num_key_value_heads=8, intermediate_size=14336, vocab_size=128256, rope_theta=500000.0)),
    (llama.tinyllama, '1.1B', SHARED | dict(model_type='llama', hidden_size=2048, num_hidden_layers=22, num_attention_heads=32,
                                            num_key_value_heads=4, intermediate_size=5632)),
    (llama.mistral, '7B', SHARED | dict(model_type='mistral', hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
                                        num_key_value_heads=8, intermediate_size=14336, sliding_window=4096))]


@pytest.mark.parametrize('preset, size, published', CHECKPOINTS)
def test_checkpoints(preset, size, published):
  assert preset(size).size() == published


@pytest.mark.parametrize('preset, size, config', CONFIGS)
def test_the_preset_is_what_its_config_loads_as(preset, size, config):
  ours, loaded = preset(size), files._model(config, {})
  same = lambda model: (model.blocks, model.vocab, model.width, model.norm, model.embedding, model.head)
  assert same(ours) == same(loaded)


def test_an_unknown_size_names_the_known():
  with pytest.raises(ValueError, match="llama2: size '30B' is not one of 7B, 13B, 70B"):
    llama.llama2('30B')
  with pytest.raises(ValueError, match="transformer: size '1B' is not one of 340M, 1.3B"):
    llama.transformer('1B')
