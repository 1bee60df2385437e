"""Training: experiments, the loop and what it leaves behind."""

from ssmlab.train.experiment import Experiment, Train
from ssmlab.train.optimizer import AdamW, Muon
