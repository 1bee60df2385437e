"""The RWKV presets have the published numbers of parameters."""

import pytest

from ssmlab.models.presets import rwkv

# RWKV-4: arXiv 2305.13048, table 2 (1.693e8 ... 1.415e10) and its formula in appendix; 5 and 6: arXiv 2404.05892, abstract and appendix E.
# 7 Pile: the names of the checkpoints, BlinkDL/rwkv-7-pile; 7 World: arXiv 2503.14456, abstract (0.19 to 2.9) and the checkpoints' names.
PUBLISHED = [
    (rwkv.rwkv4, '169M', 169.3e6, 1e5), (rwkv.rwkv4, '430M', 430.4e6, 1e5), (rwkv.rwkv4, '1.5B', 1.515e9, 1e6),
    (rwkv.rwkv4, '3B', 2.985e9, 1e6), (rwkv.rwkv4, '7B', 7.393e9, 1e6), (rwkv.rwkv4, '14B', 14.15e9, 1e7),
    (rwkv.rwkv5, '0.4B', 0.462e9, 1e6), (rwkv.rwkv5, '1.5B', 1.58e9, 1e7), (rwkv.rwkv5, '3B', 3.06e9, 1e7), (rwkv.rwkv5, '7B', 7.52e9, 1e7),
    (rwkv.rwkv6, '1.6B', 1.60e9, 1e7), (rwkv.rwkv6, '3B', 3.10e9, 1e7),
    (rwkv.rwkv7, '0.1B', 0.19e9, 1e7), (rwkv.rwkv7, '0.4B', 0.45e9, 1e7), (rwkv.rwkv7, '1.5B', 1.5e9, 1e8), (rwkv.rwkv7, '2.9B', 2.9e9, 1e8),
    (rwkv.rwkv7_pile, '168M', 168e6, 1e6), (rwkv.rwkv7_pile, '421M', 421e6, 1e6), (rwkv.rwkv7_pile, '1.47B', 1.47e9, 1e7)]


@pytest.mark.parametrize('preset, size, published, digit', PUBLISHED, ids=lambda x: getattr(x, '__name__', None))
def test_number_of_parameters(preset, size, published, digit):
  """Within one unit of the last digit published: some are rounded, some cut."""
  assert abs(preset(size).size() - published) <= digit


def test_formulas_of_the_papers():
  """2VD + 13 D^2 L + what each version has of vectors and low-rank maps."""
  counts = lambda model: (model.vocab, model.width, model.depth)
  for size in rwkv.SIZES_4:
    v, d, n = counts(rwkv.rwkv4(size))
    assert rwkv.rwkv4(size).size() == 2 * v * d + 13 * d * d * n + d * (11 * n + 4)
  for preset, sizes, vectors in ((rwkv.rwkv5, rwkv.SIZES_5, 14), (rwkv.rwkv6, rwkv.SIZES_6, 464)):
    for size in sizes:
      v, d, n = counts(preset(size))
      assert preset(size).size() == 2 * v * d + 13 * d * d * n + vectors * d * n + 4 * d


def test_unknown_size_is_named():
  with pytest.raises(ValueError, match="rwkv6: size '7B' is not one of 1.6B, 3B"):
    rwkv.rwkv6('7B')
