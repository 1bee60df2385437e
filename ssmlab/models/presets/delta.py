"""DeltaNet and Gated DeltaNet at the published sizes.  arXiv 2406.06484 and 2412.06464.

DeltaNet: '1.3B' is fla-hub/delta_net-1.3B-100B, '340M' fla-org/flame, configs/delta_net_340M.json.  Gated DeltaNet: the released
m-a-p/340M-20B-GatedDeltaNet-pure-baseline and m-a-p/1.3B-100B-GatedDeltaNet-pure (A Systematic Analysis of Hybrid Linear Attention,
arXiv 2507.06457); and the paper's own, whose weights are not released, from NVlabs/GatedDeltaNet, lit_gpt/config.py.

These names leave out one of the two tables of 32,000 ids, except m-a-p's, which fit neither way.
"""

from ssmlab.mixers.deltanet import DeltaNet
from ssmlab.mixers.gated_deltanet import GatedDeltaNet
from ssmlab.models.lm import LM
from ssmlab.models.presets import llama_style, sizes_of

# Layers, width, heads, width of the MLP: 8/3 of the width, rounded up to a multiple of 256.
SIZES_DELTANET = {'340M': (24, 1024, 8, 2816), '1.3B': (24, 2048, 16, 5632)}
SIZES_GATED = {'340M': (24, 1024, 4, 2816), '1.3B': (24, 2048, 8, 5632)}

# Of the paper: keys 3/4 and values 3/2 of the width, in 9 heads.
SIZES_GATED_PAPER = {'1.3B': (16, 2400, 5888)}


def deltanet(size: str) -> LM:
  """DeltaNet: '340M' or '1.3B'."""
  depth, width, heads, hidden = sizes_of('deltanet', SIZES_DELTANET, size)
  return llama_style(DeltaNet(heads=heads, head_dim=width // heads, eps=1e-6), depth, width, hidden)


def gated_deltanet(size: str) -> LM:
  """Gated DeltaNet as released: '340M' or '1.3B'."""
  depth, width, heads, hidden = sizes_of('gated_deltanet', SIZES_GATED, size)
  return llama_style(GatedDeltaNet(heads=heads, head_dim=width // heads, value_dim=width // heads, eps=1e-6), depth, width, hidden)


def gated_deltanet_paper(size: str) -> LM:
  """Gated DeltaNet as in its paper's experiments: '1.3B'.

  The code's map to beta has a bias, ours none, and it declares D, one number per head that nothing reads: 2 * 9 * 16 parameters in all.
  """
  depth, width, hidden = sizes_of('gated_deltanet_paper', SIZES_GATED_PAPER, size)
  return llama_style(GatedDeltaNet(heads=9, head_dim=width * 3 // 4 // 9, value_dim=width * 3 // 2 // 9), depth, width, hidden, eps=1e-5)
