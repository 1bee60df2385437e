"""What is optimised and measured."""

from ssmlab.tasks.calm import Autoencode, NextVector
from ssmlab.tasks.classify import Classify
from ssmlab.tasks.masked_lm import MaskedLM
from ssmlab.tasks.next_token import NextToken
