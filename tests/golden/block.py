"""Golden files of AugViT's block, the origin of PanGu-pi's shortcuts: four variants of one bidirectional block, computed with our parts."""

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.layers.channel import MLP
from ssmlab.layers.norms import LayerNorm
from ssmlab.layers.shortcut import Circulant, Full
from ssmlab.mixers.attention import Attention
from ssmlab.mixers.augmented import Augmented
from tests.golden.compare import Errors, Golden

SYSTEMS = ('augvit-block',)


class BlockRun:
  """One file.  With one shortcut a branch is x + f(norm x) + T(norm x); with two, activated ones, the whole sum is multiplied by 3/4."""

  def __init__(self, golden: Golden):
    self.golden, self.errors, config = golden, Errors(golden), golden.meta['config']
    self.width, self.blocks = config['dim'], config['num_cir']
    self.attention = Attention(heads=config['num_heads'], head_dim=self.width // config['num_heads'], causal=False, rotary_fraction=0.0,
                               bias=config['qkv_bias'], output_bias=True)
    self.channel, self.norm = MLP(int(self.width * config['mlp_ratio'])), LayerNorm()

  def check(self) -> Errors:
    golden, x = self.golden, jnp.asarray(self.golden.take('in/x'))
    modes = sorted({key.split('/')[1] for key in golden.tensors if key.startswith('param/')})
    for mode in modes:
      params = {key: jnp.asarray(value) for key, value in golden.under(f'param/{mode}/').items()}
      weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

      def loss(params, x, mode=mode, weights=weights):
        y = self.block(mode, params, x)
        return jnp.sum(y * weights), y
      (_, y), (gradients, d_x) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)
      self.errors.output(f'out/{mode}/y', y, golden.take(f'out/{mode}/y'))
      if (theirs := golden.take(f'out/{mode}/augs_attn.dense_matrix')) is not None:
        made = Circulant(self.blocks)
        w = params['augs_attn.weight_list'].reshape(made.params(self.width)['w'].shape)
        self.errors.output(f'out/{mode}/augs_attn.dense_matrix', made.matrix(w).T, theirs)
      theirs = golden.under(f'grad/{mode}/')
      largest = max(float(np.abs(value).max()) for value in theirs.values())
      for key, mine in (gradients | dict(x=d_x)).items():
        self.errors.gradient(f'grad/{mode}/{key}', mine, theirs[key], largest)
    left = golden.left()
    assert not left, f'{golden.name}: nothing looked at {", ".join(left)}'
    return self.errors

  def block(self, mode: str, params, x):
    pair = mode.endswith('2')
    make = Circulant if mode.startswith('circulant') else Full
    one = make(activation='gelu' if pair else None, bias=True, **(dict(blocks=self.blocks) if make is Circulant else {}))

    def shortcuts(name):
      names = (f'{name}.0', f'{name}2.0') if pair else (name,)
      shape = one.params(self.width)['w'].shape
      matrix = lambda at: params[f'{at}.weight_list'].reshape(shape) if make is Circulant else params[f'{at}.weight'].T
      return {str(i): dict(w=matrix(at), b=params[f'{at}.bias']) for i, at in enumerate(names)}
    beside = shortcuts('augs_attn')
    mixer = Augmented(self.attention, (one,) * len(beside))
    norm = lambda at: dict(scale=params[f'{at}.weight'], bias=params[f'{at}.bias'])
    split = lambda name: jnp.split(params[f'attn.qkv.{name}'], 3)
    (q, k, v), (b_q, b_k, b_v) = split('weight'), split('bias')
    attention = dict(w_q=q.T, w_k=k.T, w_v=v.T, b_q=b_q, b_k=b_k, b_v=b_v, w_o=params['attn.proj.weight'].T, b_o=params['attn.proj.bias'])
    share = 0.75 if pair else 1.0
    x = share * (x + mixer.apply(dict(mixer=attention, shortcuts=beside), self.norm.apply(norm('norm1'), x))[0])
    u = self.norm.apply(norm('norm2'), x)
    mlp = dict(w_up=params['mlp.fc1.weight'].T, b_up=params['mlp.fc1.bias'], w_down=params['mlp.fc2.weight'].T, b_down=params['mlp.fc2.bias'])
    return share * (x + self.channel.apply(mlp, u)[0] + sum(one.apply(theirs, u) for theirs in shortcuts('augs').values()))
