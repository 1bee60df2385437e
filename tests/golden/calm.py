"""Golden files of CALM: its autoencoder, its heads and its language model, every draw recorded."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from ssmlab.interop import calm, mapping, pretrained
from ssmlab.models.calm.autoencoder import floored_divergence
from ssmlab.models.calm.diffusion_head import schedule
from ssmlab.ops.energy_score import energy_score
from tests.golden.compare import Errors, Golden

BARE = types.SimpleNamespace(blocks=(), layers=lambda tree: [])                # a head by itself has no blocks


class CALMRun:
  """One file.  Errors are relative to the largest value of each tensor."""

  def __init__(self, golden: Golden):
    self.golden, self.errors, self.config = golden, Errors(golden), golden.meta['config']

  def check(self) -> Errors:
    {'calm-autoencoder': self.autoencoder, 'calm-energy-head': self.energy_head, 'calm-alt-heads': self.other_heads,
     'calm-lm': self.language_model}[self.golden.meta['system']]()
    left = self.golden.left()
    assert not left, f'{self.golden.name}: nothing looked at {", ".join(left)}'
    return self.errors

  def output(self, key: str, mine) -> None:
    theirs = self.golden.take(key)
    self.errors.output(key, jnp.reshape(jnp.asarray(mine), theirs.shape), theirs)

  def gradients(self, prefix: str, mine, but: tuple[str, ...] = ()) -> None:
    """mine: under the authors' keys."""
    theirs = {key: value for key, value in self.golden.under(prefix).items() if key not in but}
    largest = max(float(np.abs(value).max()) for value in theirs.values())
    for key, value in theirs.items():
      assert key in mine, f'{prefix}{key} is a gradient of no parameter of ours'
      self.errors.gradient(prefix + key, mine[key], value, largest)

  def built(self, name: str):
    """The model and its parameters, and that export gives back every tensor of the file."""
    tensors = self.golden.under('param/')
    model, params, _ = pretrained.build(name, self.config, tensors, self.golden.name)
    written = pretrained.export(model, params, name)
    assert all(np.array_equal(written[key], value) for key, value in tensors.items()), 'export does not give back what was loaded'
    return model, params

  def autoencoder(self):
    golden, (model, params), config = self.golden, self.built('calm-autoencoder'), self.config
    tokens, noise = golden.tokens('in/input_ids'), golden.take('in/posterior_noise')
    uniform, kept = golden.take('in/dropout_token_uniform'), golden.take('in/dropout_latent_keep')

    def loss(params, dropped: bool):
      mean, log_std = model.encode(params, model.drop_tokens(tokens, uniform.reshape(tokens.shape)) if dropped else tokens)
      z = mean + jnp.exp(log_std) * noise
      logits = model.decode(params, model.drop_latent(z, kept) if dropped else z).reshape(*tokens.shape, -1)
      entropy = -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1))
      divergence = jnp.mean(jnp.sum(floored_divergence(mean, log_std, config['kl_clamp']), axis=-1))
      return model.chunk * entropy + config['kl_weight'] * divergence, (mean, log_std, logits, entropy, divergence)
    (value, (mean, log_std, logits, entropy, divergence)), gradients = jax.value_and_grad(loss, has_aux=True)(params, False)
    for key, mine in dict(mean=mean, log_std=log_std, logits_from_sample=logits, cross_entropy_mean=entropy, kl_clipped=divergence, loss_train=value,
                          loss_train_with_dropout=loss(params, True)[0], decode_logits_from_mean=model.decode(params, mean)).items():
      self.output(f'out/{key}', mine)
    self.gradients('grad/', mapping.read(calm.autoencoder_rules(model), model, gradients))

  def _head(self, kind: str, prefix: str):
    """(head, its parameters, rules) of the tensors under a prefix."""
    head, config = calm.head_of(self.config, kind), self.config
    rules = calm.energy_rules(head) if kind == 'energy' else calm.network_rules(head)
    shapes = jax.tree.map(lambda p: np.empty(p.shape, np.float32), dict(head=head.params(config['hidden_size'], config['latent_size'])),
                          is_leaf=lambda x: hasattr(x, 'axes'))
    tensors = self.golden.under(prefix)
    assert not mapping.uncovered(rules, BARE, shapes)
    assert mapping.fill(rules, BARE, shapes, tensors) == set(tensors)
    return head, shapes['head'], rules

  def energy_head(self):
    golden, (head, params, rules) = self.golden, self._head('energy', 'param/')
    hidden, noise, mean, log_std, draws = (golden.take(f'in/{name}') for name in ('hidden_states', 'noise', 'target_mean', 'target_log_std', 'target_noise'))
    target = lambda m: mean + jnp.exp(log_std) * jnp.asarray(draws)[m]

    def loss(params, hidden):
      x = head.sample(params, jnp.asarray(hidden), jnp.asarray(noise))
      fidelity, diversity = energy_score(x, target, len(draws), head.alpha)
      return jnp.mean(fidelity - diversity), (x, diversity - fidelity)
    (value, (x, score)), (gradients, d_hidden) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, hidden)
    for key, mine in dict(latent_predictions=x, energy_score=score, loss=value).items():
      self.output(f'out/{key}', mine)
    for key in [key for key in golden.tensors if key.startswith('out/loss_beta_')]:
      fidelity, diversity = energy_score(x, target, len(draws), float(key.removeprefix('out/loss_beta_')))
      self.output(key, jnp.mean(fidelity - diversity))
    self.gradients('grad/', mapping.read(rules, BARE, dict(head=gradients)) | dict(hidden_states=d_hidden))

  def other_heads(self):
    golden, take = self.golden, lambda name: jnp.asarray(self.golden.take(name))
    hidden, y = take('in/hidden_states'), take('in/target')
    head, params, rules = self._head('flow', 'param/flow/')
    noise, t = take('in/flow_x0'), take('in/flow_t')
    gradients = jax.grad(lambda params: jnp.mean(head.error(params, hidden, y, noise, t)))(params)
    self.output('out/flow_loss', head.error(params, hidden, y, noise, t))
    self.output('out/flow_sample', head.sample(params, hidden, take('in/flow_sample_x0')))
    self.gradients('grad/flow/', mapping.read(rules, BARE, dict(head=gradients)))
    head, params, rules = self._head('diffusion', 'param/diffusion/')
    noise, index = take('in/diffusion_noise'), golden.tokens('in/diffusion_t')
    gradients = jax.grad(lambda params: jnp.mean(head.error(params, hidden, y, noise, index)['loss']))(params)
    self.output('out/diffusion_loss', head.error(params, hidden, y, noise, index)['loss'])
    self.gradients('grad/diffusion/', mapping.read(rules, BARE, dict(head=gradients)))
    used = golden.take('out/sampler_betas')
    self.errors.output('out/sampler_betas', schedule(head.steps, len(used)).betas, used)
    assert (schedule(head.steps, len(used)).at == golden.take('out/sampler_timestep_map')).all(), 'the sampler takes other steps'
    kept = golden.take('out/train_alphas_cumprod')
    self.errors.output('out/train_alphas_cumprod', schedule(len(kept), len(kept)).kept, kept)
    x, noise, at = take('in/diffusion_step_x'), take('in/diffusion_step_noise'), golden.tokens('in/diffusion_step_index')
    before, start = head.reverse(params, x, jnp.broadcast_to(at[:, None], x.shape[:-1]), jnp.broadcast_to(hidden, (*x.shape[:-1], hidden.shape[-1])), noise)
    self.output('out/diffusion_step_x_prev', before)
    self.output('out/diffusion_step_pred_x0', start)

  def language_model(self):
    golden, (model, params), chunk = self.golden, self.built('calm-lm'), self.config['patch_size']
    tokens, noise, draws = golden.tokens('in/input_ids'), golden.take('in/noise'), jnp.asarray(golden.take('in/target_noise'))
    labels, some, some_draws = (golden.tokens('in/labels_masked'), golden.take('in/noise_masked'), golden.take('in/target_noise_masked'))
    head = model.head

    def score(params, hidden, mean, log_std, noise, draws):
      x = head.sample(params['head'], hidden, jnp.asarray(noise))
      target = lambda m: mean + jnp.exp(log_std) * jnp.asarray(draws)[m]
      fidelity, diversity = energy_score(x, target, len(draws), head.alpha)
      return x, fidelity - diversity

    def loss(params):
      h, _ = model.hidden(params, tokens[:, :-chunk])
      mean, log_std = jax.lax.stop_gradient(model.autoencoder.encode(params['autoencoder'], tokens[:, chunk:]))
      flat = lambda a: a.reshape(-1, a.shape[-1])
      x, losses = score(params, flat(h), flat(mean), flat(log_std), noise, draws)
      return jnp.mean(losses), (h, flat(mean), flat(log_std), x, losses)
    (value, (h, mean, log_std, x, losses)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    logits = model.autoencoder.decode(params['autoencoder'], x[:2])
    for key, mine in dict(hidden_states=h, target_mean=mean, target_log_std=log_std, latent_predictions=x, energy_score=-losses, loss=value,
                          decoded_logits_first_two_samples=logits, compressed_inputs=model._embed(params, tokens[:, :-chunk])).items():
      self.output(f'out/{key}', mine)
    where = (labels[:, chunk::chunk] >= 0).reshape(-1)
    self.output('out/loss_masked', jnp.mean(score(params, h.reshape(-1, model.width)[where], mean[where], log_std[where], some, some_draws)[1]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients['autoencoder'])), 'a gradient reaches the frozen autoencoder'
    self.gradients('grad/', mapping.read(pretrained.form_of('calm-lm').rules(model), model, gradients))
    self.carried(model, params, tokens, h)
    self.generated(model, params)

  def carried(self, model, params, tokens, h):
    """The hidden states again, chunk by chunk with a state."""
    state, seen, read = model.init_state(len(tokens), tokens.shape[1]), [], jax.jit(model.hidden)
    for at in range(0, tokens.shape[1] - model.chunk, model.chunk):
      x, state = read(params, tokens[:, at:at + model.chunk], state)
      seen.append(x)
    self.errors.output('out/hidden_states (chunk by chunk)', jnp.concatenate(seen, axis=1), self.golden.take('out/hidden_states'))

  def generated(self, model, params):
    prompt, noise, theirs = self.golden.tokens('in/prompt_ids'), self.golden.take('in/gen_noise'), self.golden.tokens('out/generated_ids')
    _, state = model.hidden(params, prompt, model.init_state(len(prompt), theirs.shape[1]))
    seen = [prompt]

    @jax.jit
    def step(params, state, noise):
      tokens = jnp.argmax(model.logits(params, state['hidden'], noise), axis=-1)
      return tokens, model.hidden(params, tokens, state)[1]
    for each in noise:
      tokens, state = step(params, state, each)
      seen.append(np.asarray(tokens))
    written = np.concatenate(seen, axis=1)
    assert (written == theirs).all(), f'generation gives {written.tolist()}, golden {theirs.tolist()}'


SYSTEMS = ('calm-autoencoder', 'calm-energy-head', 'calm-lm', 'calm-alt-heads')
