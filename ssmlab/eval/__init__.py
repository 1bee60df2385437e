"""Generation and held-out measures."""

from ssmlab.eval.at_end import Compressors, Padding, Sample
from ssmlab.eval.brier import BrierLM
from ssmlab.eval.generate import generate, stream
from ssmlab.eval.heldout import HeldOut
from ssmlab.eval.scores import Scores
