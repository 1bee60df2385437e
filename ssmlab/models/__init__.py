"""Networks."""

from ssmlab.models.calm import CALM, Autoencoder
from ssmlab.models.encoder import Encoder
from ssmlab.models.lm import LM, Block
