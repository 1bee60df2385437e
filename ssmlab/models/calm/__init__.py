"""CALM: continuous autoregressive language models, arXiv 2510.27688."""

from ssmlab.models.calm.autoencoder import Autoencoder
from ssmlab.models.calm.diffusion_head import DiffusionHead
from ssmlab.models.calm.energy_head import EnergyHead
from ssmlab.models.calm.flow_head import FlowHead
from ssmlab.models.calm.vector_lm import CALM
