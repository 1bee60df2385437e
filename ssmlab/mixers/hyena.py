"""Hyena.  Hyena Hierarchy: Towards Larger Convolutional Language Models, arXiv 2302.10866, section 3; author code HazyResearch/safari,
src/models/sequence/hyena.py (HyenaOperator).  MultiHyena: Laughing Hyena Distillery, arXiv 2310.18780, section 4.

"Order N" is the code's: N gates and N - 1 long convolutions (the paper counts the short convolution as one more); the paper's Pile models
are of order 2.  Filter channel c = d (N - 1) + o, o fastest, as in the code.  Its inner_factor, num_blocks, post_order_ffn and
outer_mixing, which are off in every published model and partly do not run, do not exist here; its num_heads > 1, which does not run
either, is MultiHyena here.  Nor is there the normalisation of its dropout: it is 0 everywhere.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssmlab.core import inits
from ssmlab.core.params import Param, vector
from ssmlab.layers.filters import Filtered, ImplicitFilter, LongFilter, ModalFilter
from ssmlab.mixers import Mixer
from ssmlab.ops.projection import project
from ssmlab.ops.short_convolution import short_convolution


@dataclasses.dataclass(frozen=True)
class Hyena(Filtered, Mixer):
  """v <- g_{N-1-o} v, v <- h_o conv v + skip_o v for o = 0 .. N-2;  y = (g_0 v) W_out + b_out;  g_i and v are short convolutions of x W + b.

  filter: of the long convolutions, with width * (order - 1) channels.  None: ModalFilter(), which has no longest length.  With a
    ModalFilter this is the distilled Hyena: the rest of the parameters is the same.
  order: number of gates N, at least 2.
  heads: 1: every channel has its own filter.  More, at order 2: one filter per head, which convolves the products of all its keys
    (gate 1) with all its values, and gate 0 is contracted with the keys (MultiHyena); heads = width is again a filter per channel.
  conv_width: steps of the short convolutions.
  """
  filter: LongFilter | None = None
  order: int = 2
  heads: int = 1
  conv_width: int = 3

  _usual = ModalFilter()

  def __post_init__(self):
    if self.order < 2:
      raise ValueError(f'Hyena: order={self.order} must be at least 2')
    if self.heads < 1 or self.heads > 1 and self.order != 2:
      raise ValueError(f'Hyena: heads={self.heads} with order={self.order}; heads above 1 are defined for order=2 only')
    if self.conv_width < 1:
      raise ValueError(f'Hyena: conv_width={self.conv_width} must be at least 1')
    self._filter                                             # checks that it is one

  @property
  def _names(self) -> tuple[str, ...]:
    """In the order of the authors' fused projection."""
    return (*(f'g{i}' for i in range(self.order)), 'v')

  def _channels(self, width: int) -> int:
    if width % self.heads:
      raise ValueError(f'Hyena: width {width} is not a multiple of heads {self.heads}')
    return width * (self.order - 1) if self.heads == 1 else self.heads

  def params(self, width: int):
    channels, bound = self._channels(width), self.conv_width ** -0.5
    tree = dict(w_out=Param((width, width), ('inner', 'width'), inits.residual(0.02)), b_out=vector(width, None),
                skip=Param((channels,), ('inner',), inits.normal(1.0)), filter=self._filter.params(channels))
    for name in self._names:
      tree |= {f'w_{name}': Param((width, width), ('width', 'inner'), inits.normal(0.02)), f'b_{name}': vector(width, 'inner'),
               f'conv_{name}': Param((self.conv_width, width), (None, 'inner'), inits.uniform(-bound, bound)),
               f'b_conv_{name}': vector(width, 'inner', inits.uniform(-bound, bound))}
    return tree

  def init_state(self, width: int, batch: int, max_length: int):
    tails = {f'conv_{name}': jnp.zeros((batch, self.conv_width - 1, width), jnp.float32) for name in self._names}
    size = width // self.heads
    channels, shared = (width, ()) if self.heads == 1 else (self.heads, (size, size))
    return tails | {f'long_{o}': self._filter.init_state(channels, batch, max_length, shared) for o in range(self.order - 1)}

  def room(self, state) -> int | None:
    return self._filter.room(state['long_0'])

  def flops(self, width: int, length: int) -> float:
    """The filter as made for one sequence; a batch shares it."""
    channels, short = self._channels(width), 2 * self.conv_width * (self.order + 1) * width
    gates = 2 * width * (self.order + 1) if self.heads == 1 else 6 * width * width / self.heads
    shared = 1 if self.heads == 1 else (width // self.heads) ** 2
    return 2 * (self.order + 2) * width * width + short + gates + self._filter.flops(channels, length, shared)

  def apply(self, params, x: jax.Array, state=None, *, segment_ids=None):
    short, after = self.projections(params, x, state, segment_ids)
    kernel = self._filter.kernel(params['filter'], x.shape[1], None if state is None else state['long_0'])
    mix = self._gated if self.heads == 1 else self._by_head
    y, long = mix(kernel, params['skip'], short, state, segment_ids)
    y = project(y, params['w_out']) + params['b_out']
    return y, None if state is None else after | long

  def projections(self, params, x: jax.Array, state=None, segment_ids=None):
    """({'g0': ..., 'v': ...} after the short convolutions, their next tails)."""
    short, after = {}, {}
    for name in self._names:
      p = project(x, params[f'w_{name}']) + params[f'b_{name}']
      short[name], tail = short_convolution(p, params[f'conv_{name}'], params[f'b_conv_{name}'],
                                            None if state is None else state[f'conv_{name}'], segment_ids)
      after[f'conv_{name}'] = tail.astype(jnp.float32)
    return short, after

  def _gated(self, kernel, skip, short, state, segment_ids):
    v, after, orders = short['v'], {}, self.order - 1
    for o in range(orders):
      one = jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:-1], -1, orders)[..., o], (kernel, skip))
      v = short[f'g{orders - o}'] * v
      y, after[f'long_{o}'] = self._filter.convolve(one[0], v, None if state is None else state[f'long_{o}'], segment_ids)
      v = y + one[1] * v
    return short['g0'] * v, after

  def _by_head(self, kernel, skip, short, state, segment_ids):
    """z = k (x) v of every head; y[value] = sum over keys of q[key] (h conv z + skip z)[key, value]."""
    q, k, v = (short[name].reshape(*short['v'].shape[:2], self.heads, -1) for name in ('g0', 'g1', 'v'))
    z = k[..., :, None] * v[..., None, :]
    y, after = self._filter.convolve(kernel, z, None if state is None else state['long_0'], segment_ids)
    y = jnp.einsum('bthk,bthkv->bthv', q, y + skip[:, None, None] * z)
    return y.reshape(short['v'].shape), dict(long_0=after)


TINY = Hyena(ImplicitFilter(l_max=19, emb_dim=5, width=8, frequency=10.0, window_rate=1.0), conv_width=3)
