"""Networks."""

from ssmlab.models.encoder import Encoder
from ssmlab.models.lm import LM, Block
