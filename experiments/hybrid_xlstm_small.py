"""Three mLSTM to one sLSTM at the quick start's size, data and budget.  Architecture: xLSTM, arXiv 2405.04517, with the mLSTM of arXiv 2503.13427.

python -m ssmlab.launch experiments/hybrid_xlstm_small.py

Not the first paper's blocks: its mLSTM stands inside an up-projection with a convolution and a learnable skip and has no MLP; here it is
xLSTM 7B's layer, gates capped, before an MLP.  The sLSTM is the paper's, a gated MLP of width 4/3 after it.  The paper's language models
have one sLSTM in eight blocks (xLSTM[7:1]) or none.
"""

from experiments.quickstart import config as base
from ssmlab.core.config import override
from ssmlab.layers.channel import GatedMLP
from ssmlab.mixers.mlstm import MLSTM
from ssmlab.mixers.slstm import SLSTM
from ssmlab.models import LM, Block


def config():
  matrix = Block(MLSTM(heads=5, head_dim=16, value_dim=32), GatedMLP(hidden=680))
  scalar = Block(SLSTM(heads=4), GatedMLP(hidden=214, activation='gelu'))
  return override(base(), 'model', LM(vocab=256, width=160, pattern=(matrix, scalar, matrix, matrix), depth=4, remat='none'))
