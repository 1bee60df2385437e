"""Models at their published sizes: one module per family, one function per architecture."""

from collections.abc import Mapping
from typing import Any

from ssmlab.layers.channel import GatedMLP
from ssmlab.layers.embedding import Embedding, Head
from ssmlab.layers.norms import RMSNorm
from ssmlab.mixers import Mixer
from ssmlab.models.lm import LM


def sizes_of(name: str, sizes: Mapping[str, Any], size: str, *more: str) -> Any:
  """sizes[size].  ValueError names the preset and what it allows: the sizes and `more`, those that it treats apart."""
  if size not in sizes:
    raise ValueError(f'{name}: size {size!r} is not one of {", ".join((*sizes, *more))}')
  return sizes[size]


def llama_style(mixer: Mixer, depth: int, width: int, hidden: int, vocab: int = 32000, eps: float = 1e-6) -> LM:
  """Llama's frame around any mixer: RMS norms, SwiGLU, no biases, a head of its own.  fla-org/flash-linear-attention trains all its models in it."""
  return LM(vocab=vocab, width=width, depth=depth, pattern=(mixer,), channel=GatedMLP(hidden), norm=RMSNorm(eps), embedding=Embedding(), head=Head())
