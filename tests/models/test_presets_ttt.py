"""The TTT-Linear presets have the parameters of the authors' code, but for the convolution before each block."""

import pytest

from ssmlab.models.presets.ttt import ttt_linear


@pytest.mark.parametrize('size, depth, width, heads, hidden, name', [
    ('125M', 12, 768, 12, 2048, 110), ('350M', 24, 1024, 16, 2736, 338), ('760M', 24, 1536, 16, 4096, 733), ('1.3B', 24, 2048, 32, 5504, 1285)])
def test_the_count_by_the_authors_keys(size, depth, width, heads, hidden, name):
  """CONFIGS and the modules of test-time-training/ttt-lm-jax, ttt/models/model.py and ttt_layer.py."""
  size_of_head = width // heads
  layer = 4 * width * width                                # wq, wv, wg, wo
  layer += 2 * (4 * width + width)                         # conv_q, conv_k: four taps and a bias
  layer += width * size_of_head + width                    # ttt_dense_0, ttt_bias_0
  layer += 2 * width + 2 * width                           # ttt_norm, post_norm: scale and bias
  layer += heads * (width + 1) + 16                        # learnable_ttt_lr, learnable_token_idx
  layer += 2 * width + 3 * width * hidden                  # seq_norm, ffn_norm, feed_forward
  model = ttt_linear(size)
  assert model.size() == 32000 * width + depth * layer + width
  assert round(model.size() / 1e6) == name                 # the sizes' names are GPT-3's


def test_an_unknown_size_names_the_known():
  with pytest.raises(ValueError, match="ttt_linear: size '1b' is not one of 125M, 350M, 760M, 1.3B"):
    ttt_linear('1b')
