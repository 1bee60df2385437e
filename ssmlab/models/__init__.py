"""Networks."""

from ssmlab.models.lm import LM, Block
