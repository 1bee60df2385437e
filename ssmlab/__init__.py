"""ssmlab: a lab, in JAX, for the sequence architectures that challenge the Transformer."""

from ssmlab.core.params import init
from ssmlab.eval.generate import generate
from ssmlab.eval.session import load_state, save_state
from ssmlab.interop.pretrained import load_pretrained
from ssmlab.models.encoder import Encoder
from ssmlab.models.lm import LM, Block
