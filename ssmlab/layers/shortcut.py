"""Augmented shortcuts: what runs beside a branch and its identity skip, on one token at a time.

Augmented Shortcuts for Vision Transformers, arXiv 2106.15941, eq. 5 and section 3.3 (author code huawei-noah/CV-Backbones,
augvit_pytorch/models/augvit.py); PanGu-pi, arXiv 2312.17276, eq. 4 and 5 and section 4.1 (no code published).
Each has params(width), apply(params, x [..., width]) -> the same, flops(width).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.channel import activation
from ssmlab.ops.projection import project


class Shortcut:
  """Base of the shortcuts: `activation` after the first map (None: none), and what both maps cost."""

  def _activate(self, x: jax.Array) -> jax.Array:
    return x if self.activation is None else activation(self.activation)(x)

  def __post_init__(self):
    if self.activation is not None:
      activation(self.activation)

  def flops(self, width: int) -> int:
    """Forward FLOPs per token, a multiply-add being two."""
    return 2 * sum(math.prod(p.shape) for p in self.params(width).values() if len(p.shape) == 2)


@dataclasses.dataclass(frozen=True)
class Bottleneck(Shortcut):
  """act(x W_down) W_up with an inner width of width / reduction: PanGu-pi's own, sixteen times cheaper at 32 than a full map.

  reduction: must divide the width; the published models have 32.  activation: the paper's GELU (exact: which one it does not say).
  start: standard deviation of W_down; W_up starts at zero, so that the model starts as the one without shortcuts.
  """
  reduction: int = 32
  activation: str | None = 'gelu'
  start: float = 0.02

  def params(self, width: int):
    if self.reduction < 1 or width % self.reduction:
      raise ValueError(f'Bottleneck: width {width} is not a multiple of reduction={self.reduction}')
    inner = width // self.reduction
    return dict(w_down=Param((width, inner), ('width', 'inner'), inits.normal(self.start)),
                w_up=Param((inner, width), ('inner', 'width'), inits.zeros()))

  def apply(self, params, x: jax.Array) -> jax.Array:
    return project(self._activate(project(x, params['w_down'])), params['w_up'])


@dataclasses.dataclass(frozen=True)
class Full(Shortcut):
  """act(x Theta + bias): eq. 5.  AugViT's single shortcut has no activation."""
  activation: str | None = 'gelu'
  bias: bool = False

  def params(self, width: int):
    tree = dict(w=Param((width, width), ('width', 'inner'), inits.torch_linear()))
    return tree | (dict(b=vector(width, None)) if self.bias else {})

  def apply(self, params, x: jax.Array) -> jax.Array:
    y = project(x, params['w'])
    return self._activate(y + params['b'] if self.bias else y)


@dataclasses.dataclass(frozen=True)
class Circulant(Shortcut):
  """act(x Theta + bias) with Theta of blocks x blocks circulant matrices: width * blocks parameters instead of width^2.

  Parameter w [block out, block in, width / blocks]: entry (p, q) of a block, output p from input q, is w[(p - q) mod size], as AugViT
  stores it.  Computed as a dense product: the authors' FFT form gives the same (tests), but pays on few machines, and the partitioner
  gathers the operands of an FFT.  The product's cost is that of Full.
  """
  blocks: int = 4
  activation: str | None = 'gelu'
  bias: bool = True

  def params(self, width: int):
    if self.blocks < 1 or width % self.blocks:
      raise ValueError(f'Circulant: width {width} is not a multiple of blocks={self.blocks}')
    size = width // self.blocks
    bound = lambda fan: inits.uniform(-fan ** -0.5, fan ** -0.5)
    tree = dict(w=Param((self.blocks, self.blocks, size), (None, None, None), bound(self.blocks * size)))
    return tree | (dict(b=vector(width, None, bound(width))) if self.bias else {})

  def matrix(self, w: jax.Array) -> jax.Array:
    """Theta [in, out], such that y = x Theta."""
    blocks, _, size = w.shape
    lag = (np.arange(size)[None, :] - np.arange(size)[:, None]) % size                  # [in, out]
    return jnp.moveaxis(w[:, :, lag], (0, 1, 2, 3), (2, 0, 1, 3)).reshape(blocks * size, blocks * size)

  def flops(self, width: int) -> int:
    return 2 * width * width

  def apply(self, params, x: jax.Array) -> jax.Array:
    y = project(x, self.matrix(params['w']))
    return self._activate(y + params['b'] if self.bias else y)
