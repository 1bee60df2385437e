"""The device mesh and the one table that maps axis names of arrays to mesh axes.  Meshes are built here only.

Weights: `width` is split over `fsdp`, everything wider than the residual stream over `tensor`.
Activations: `batch` over data and fsdp, `time` over sequence; where every device needs whole rows, their heads (`row_heads`) over sequence too.
"""

import contextlib
import contextvars
import dataclasses
import math
import warnings

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ('data', 'fsdp', 'tensor', 'sequence')

RULES = {
    'width': 'fsdp', 'inner': 'tensor', 'hidden': 'tensor', 'heads': 'tensor', 'vocab': 'tensor',
    'head_dim': None, 'state': None, 'layer': None,
    'batch': ('data', 'fsdp'), 'copy': 'data', 'time': 'sequence', 'row_heads': ('tensor', 'sequence'),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh axes; `data=0` takes every device that the other axes leave.

  data: copies of the model.  fsdp: shards of weights and optimiser state, each with its part of the batch.
  tensor: shards of the inner axes.  sequence: shards of time.
  """
  data: int = 0
  fsdp: int = 1
  tensor: int = 1
  sequence: int = 1

  def sizes(self, devices: int) -> tuple[int, int, int, int]:
    """(data, fsdp, tensor, sequence).  Raises ValueError where the devices cannot be laid out so."""
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < (0 if field.name == 'data' else 1):
        raise ValueError(f'mesh.{field.name}={getattr(self, field.name)}: must be at least 1' + (' (or 0 for the rest)' * (field.name == 'data')))
    rest = self.fsdp * self.tensor * self.sequence
    data = self.data or max(devices // rest, 1)
    if data * rest != devices:
      raise ValueError(f'mesh: {data} x {self.fsdp} x {self.tensor} x {self.sequence} (data x fsdp x tensor x sequence) = {data * rest}, '
                       f'but there are {devices} devices')
    return data, self.fsdp, self.tensor, self.sequence


def make(config: MeshConfig = MeshConfig(), devices=None) -> Mesh:
  """A mesh over `devices` (default: all) with the four axes, in Auto mode: the compiler places what is not constrained."""
  devices = jax.devices() if devices is None else devices
  shape, types = config.sizes(len(devices)), (AxisType.Auto,) * len(AXES)
  try:
    return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
  except (NotImplementedError, AssertionError):
    return Mesh(_laid_out(shape, devices), AXES, axis_types=types)


def _laid_out(shape: tuple[int, ...], devices) -> np.ndarray:
  """Devices of a TPU slice whose torus jax.make_mesh does not map to `shape`: its axes split, and in order of their ids where a chip is two devices."""
  try:
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  except (NotImplementedError, AssertionError):
    return np.array(devices).reshape(shape)


def spec(shape: tuple[int, ...], axes: tuple[str | None, ...], sizes: dict[str, int]) -> PartitionSpec:
  """PartitionSpec of one array from its axis names.

  sizes: mesh axis -> number of shards.  Of several mesh axes an axis takes the first ones, as many as divide it; one that its mesh axis does not
  divide, or whose mesh axis an earlier axis took, stays whole.
  Raises ValueError for a name without a rule.
  """
  taken, entries = set(), []
  for size, name in zip(shape, axes, strict=True):
    if name is not None and name not in RULES:
      raise ValueError(f'axis {name!r} has no rule; known: {", ".join(RULES)}')
    rule = RULES[name] if name else None
    wanted = (rule,) if isinstance(rule, str) else (rule or ())
    use = tuple(a for a in wanted if sizes.get(a, 1) > 1 and a not in taken)
    while size % math.prod(sizes[a] for a in use):
      use = use[:-1]
    taken.update(use)
    entries.append(use if len(use) > 1 else next(iter(use), None))
  return PartitionSpec(*entries)


def specs(tree, sizes: dict[str, int]):
  """PartitionSpecs of a declaration tree (leaves with .shape and .axes)."""
  return jax.tree.map(lambda p: spec(p.shape, p.axes, sizes), tree, is_leaf=lambda x: hasattr(x, 'axes'))


def shardings(tree, mesh: Mesh):
  """NamedShardings of a declaration tree; warns of an axis that its mesh axis does not divide."""
  named = lambda p: NamedSharding(mesh, _outspoken(p.shape, p.axes, dict(mesh.shape)))
  return jax.tree.map(named, tree, is_leaf=lambda x: hasattr(x, 'axes'))


def _outspoken(shape: tuple[int, ...], axes: tuple[str | None, ...], sizes: dict[str, int]) -> PartitionSpec:
  """`spec`, which warns where devices hold, or compute, the same because a number does not divide."""
  found = spec(shape, axes, sizes)
  used = {axis for entry in found for axis in ((entry,) if isinstance(entry, str) else entry or ())}
  for size, name in zip(shape, axes):
    rule = RULES[name] if name else None
    for axis in (rule,) if isinstance(rule, str) else rule or ():
      if size > 1 and sizes.get(axis, 1) > 1 and axis not in used:
        warnings.warn(f'mesh.{axis}={sizes[axis]} does not divide {size} {name}: each of these devices has the whole')
  return found


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
  """Sharding of a [batch, time, ...] array of inputs."""
  names = ('batch', 'time', *(None,) * (len(shape) - 2))[:len(shape)]
  return NamedSharding(mesh, spec(shape, names, dict(mesh.shape)))


_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar('platform', default=None)


@contextlib.contextmanager
def use(mesh: Mesh | None):
  """Context in which `constrain` knows the mesh, and `platform` its devices', which may be described and not there."""
  if mesh is None:
    yield
    return
  before = _platform.set(mesh.devices.flat[0].platform)
  try:
    with jax.set_mesh(mesh):
      yield
  finally:
    _platform.reset(before)


def platform() -> str:
  """'cpu', 'gpu' or 'tpu', of the mesh in use or of this process: what an op chooses its form by."""
  return _platform.get() or jax.default_backend()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Fixes the layout of an activation by axis names; without a mesh, or on one device, does nothing.  Warns of an axis that stays whole."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, _outspoken(x.shape, axes, dict(mesh.shape)))


def free_axes() -> dict[str, int]:
  """Axis -> number of shards of the mesh that is set; empty without a mesh, on one device and inside shard_map."""
  mesh = jax.sharding.get_abstract_mesh()
  return {} if mesh.empty or mesh.size == 1 or mesh.manual_axes else dict(mesh.shape)


def whole(x: jax.Array, axis: int) -> jax.Array:
  """Keeps `axis` of an activation on every device and leaves the others to the compiler: a loop steps through it, and a split one would be exchanged in
  every turn."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*(None if i == axis else PartitionSpec.UNCONSTRAINED for i in range(x.ndim))))
