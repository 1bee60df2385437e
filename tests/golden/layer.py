"""What a golden file says about one layer or one filter by itself, computed with the rules that load whole models."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.interop import hyena, mapping
from ssmlab.layers.norms import LayerNorm
from ssmlab.mixers.h3 import H3
from ssmlab.mixers.hyena import Hyena
from ssmlab.models.lm import LM
from tests.golden.compare import Errors, Golden

MIXER = 'backbone.layers.0.mixer.'
SYSTEMS = {'hyena-filter': f'{MIXER}filter_fn.', 'hyena-operator': MIXER, 'h3-layer': MIXER}       # where their tensors are in a whole model


def h3_state(mixer: H3, params, state) -> dict[str, np.ndarray]:
  """A decoding state of H3 as the authors' two: `shift` [batch, width, n], what B makes of the last n inputs, and `diagonal` [batch * e * e,
  heads, n / 2, (re, im)], rows in the order (batch, key, value), which holds the inputs times b."""
  inputs, b = np.asarray(state['shift']), np.asarray(params['shift_b'])
  n, e = mixer.state, mixer.head_dim
  shift = sum(np.pad(b[j, :, None] * inputs[:, j:].transpose(0, 2, 1)[..., ::-1], ((0, 0), (0, 0), (j, 0))) for j in range(n))
  x = np.asarray(state['long']['real']) + 1j * np.asarray(state['long']['imaginary'])              # [batch, modes, heads, key, value]
  factor = mixer.discrete(params)[1]
  x = (x * (np.asarray(factor[0]) + 1j * np.asarray(factor[1]))[..., None, None]).transpose(0, 3, 4, 2, 1).reshape(-1, x.shape[2], n // 2)
  return dict(shift=shift, diagonal=np.stack([x.real, x.imag], axis=-1))


class LayerRun:
  """One file: a model of one such layer, of which only the layer is used."""

  def __init__(self, golden: Golden):
    self.golden, self.errors, self.system = golden, Errors(golden), golden.meta['system']
    at = self.at = SYSTEMS[self.system]
    tensors, config = hyena.renamed({at + key: value for key, value in golden.under('param/').items()}), golden.meta.get('config') or {}
    self.mixer = {'hyena-filter': lambda *given: Hyena(hyena.filter_of(*given)), 'hyena-operator': hyena.hyena_of, 'h3-layer': hyena.h3_of}[
        self.system](config, tensors, at)
    self.width = golden.meta['config']['d_model']
    self.model = LM(vocab=1, width=self.width, depth=1, pattern=(self.mixer,), norm=LayerNorm())
    keys = lambda rule: (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs
    self.rules = [rule for rule in hyena.HYENA.rules(self.model) if all(key.replace('{layer}', '0').startswith(at) for key in keys(rule))]
    tree = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), self.model.shapes())
    left = set(tensors) - mapping.fill(self.rules, self.model, tree, tensors)
    constants = hyena.HYENA.constants(self.model)
    assert left <= set(constants), f'{golden.name}: no rule for {left}'
    for key in left:
      np.testing.assert_allclose(tensors[key], constants[key], atol=1e-6)
    self.params = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), tree['blocks']['0']['mixer'])
    self.apply = jax.jit(lambda params, x, state: self.mixer.apply(params, x, state))

  def check(self) -> Errors:
    if self.system == 'hyena-filter':
      self.filter()
    else:
      self.operator()
      (self.h3 if self.system == 'h3-layer' else self.hyena)()
    left = self.golden.left()
    assert not left, f'{self.golden.name}: nothing looked at {", ".join(left)}'
    return self.errors

  def gradients(self, gradient):
    """gradient: of the layer's parameters."""
    tree = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), self.model.shapes())
    tree['blocks']['0']['mixer'] = jax.tree.map(lambda leaf: np.asarray(leaf)[None], gradient)
    mine, theirs = mapping.read(self.rules, self.model, tree), self.golden.under('grad/')
    largest = max(float(np.abs(value).max()) for value in theirs.values())
    for key, value in theirs.items():
      assert self.at + key in mine, f'grad/{key} is a gradient of no parameter of ours'
      self.errors.gradient(f'grad/{key}', mine[self.at + key], value, largest)

  def shorter(self, name: str):
    """Golden outputs of shorter inputs, (key, length)."""
    return [(key, int(found[1])) for key in self.golden.tensors if (found := re.fullmatch(rf'out/{name}_len(\d+)', key))]

  def operator(self):
    """Output, gradients, shorter inputs; the same in calls with a state, the last tokens one by one."""
    golden, u, weights = self.golden, self.golden.take('in/u'), self.golden.take('in/y_cotangent')

    def loss(params, u):
      y, _ = self.mixer.apply(params, u)
      return jnp.sum(y * weights), y
    (_, y), (d_params, d_u) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(self.params, u)
    self.errors.output('out/y', y, golden.take('out/y'))
    self.gradients(d_params)
    if (theirs := golden.take('grad_in/u')) is not None:
      self.errors.gradient('grad_in/u', d_u, theirs, float(np.abs(theirs).max()))
    for key, length in self.shorter('y'):
      self.errors.output(key, self.apply(self.params, u[:, :length], None)[0], golden.take(key))
    cut, state, seen = u.shape[1] - 4, self.mixer.init_state(self.width, len(u), u.shape[1]), []
    for at in (0, *range(cut, u.shape[1])):
      y, state = self.apply(self.params, u[:, at:cut if at == 0 else at + 1], state)
      seen.append(y)
    self.errors.output('out/y (with a state)', jnp.concatenate(seen, axis=1), golden.take('out/y'))
    self.state = state

  def hyena(self):
    golden, u = self.golden, self.golden.take('in/u')
    if (theirs := golden.take('mid/uc')) is not None:
      short, _ = self.mixer.projections(self.params, u)
      self.errors.output('mid/uc', np.concatenate(list(short.values()), axis=-1).transpose(0, 2, 1), theirs)
    if (theirs := golden.take('mid/k')) is not None:
      taps = self.mixer.filter.taps(self.params['filter'], theirs.shape[-1])
      self.errors.output('mid/k', np.asarray(taps).reshape(len(taps), self.width, -1).transpose(2, 1, 0), theirs)

  def h3(self):
    golden = self.golden
    if (theirs := golden.take('mid/diag_kernel')) is not None:
      self.errors.output('mid/diag_kernel', self.mixer._filter.taps(self.params['filter'], theirs.shape[1]).T, theirs)
    if (theirs := golden.take('mid/shift_kernel')) is not None:
      taps = np.asarray(self.mixer.shift_taps(self.params)).T[:, :theirs.shape[1]]
      self.errors.output('mid/shift_kernel', np.pad(taps, ((0, 0), (0, theirs.shape[1] - taps.shape[1]))), theirs)
    mine = h3_state(self.mixer, self.params, self.state)
    for key, name in (('out/final_shift_state', 'shift'), ('out/final_diag_state_re_im', 'diagonal')):
      if (theirs := golden.take(key)) is not None:
        self.errors.state(key, mine[name], theirs)

  def filter(self):
    """The taps, their gradients, a shorter filter, the normalised one, the network without the window; a convolution, whole and streamed."""
    golden, made, params = self.golden, self.mixer.filter, self.params['filter']
    weights, theirs = golden.take('in/h_cotangent'), golden.take('out/h')
    length = theirs.shape[1]

    def loss(params):
      h = made.taps(params['filter'], length)[None]
      return jnp.sum(h * weights), h
    (_, h), gradient = jax.value_and_grad(loss, has_aux=True)(self.params)
    self.errors.output('out/h', h, theirs)
    self.gradients(gradient)
    for key, size in self.shorter('h'):
      self.errors.output(key, made.taps(params, size)[None], golden.take(key))
    for key, mine in (('out/h_normalized', lambda: dataclasses.replace(made, normalised=True).taps(params, length)),
                      ('out/mlp_raw', lambda: made.network(params, length))):
      if (theirs := golden.take(key)) is not None:
        self.errors.output(key, mine()[None], theirs)
    if (theirs := golden.take('out/conv')) is None:
      return
    u = jnp.asarray(golden.take('in/u')).transpose(0, 2, 1)
    theirs, skip = theirs.transpose(0, 2, 1), self.params['skip']
    self.errors.output('out/conv', made.apply(params, u)[0] + skip * u, theirs)
    for form in ('direct', 'epoched', 'tiled'):
      streamed = dataclasses.replace(made, form=form)
      step, state, seen = jax.jit(streamed.apply), streamed.init_state(u.shape[2], len(u), u.shape[1]), []
      for at in range(u.shape[1]):
        y, state = step(params, u[:, at:at + 1], state)
        seen.append(y)
      self.errors.output(f'out/conv ({form})', jnp.concatenate(seen, axis=1) + skip * u, theirs)
