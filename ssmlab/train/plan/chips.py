"""Devices that need not be there: what their makers publish, and how they are described to the compiler."""

import dataclasses
import importlib.util
import logging
import os
import re

import jax

from ssmlab.core.config import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device: memory in bytes; bfloat16 FLOPs, bytes of its memory, and bytes to other devices (one way, all links), per second.

  memory: of a TPU what XLA:TPU lets a program use, as it says when there is not enough.  source: of the rest.
  """
  name: str
  memory: float
  flops: float
  bandwidth: float
  links: float
  source: str


GOOGLE, NVIDIA = 'cloud.google.com/tpu/docs', "NVIDIA's data sheet (dense; NVLink one way)"
# Google's "bidirectional ICI bandwidth" is twice `links`; the page of v5p gives one way.
CHIPS = {chip.name: chip for chip in (
    Chip('v5e', 15.75 * 2**30, 197e12, 819e9, 200e9, f'{GOOGLE}/v5e'),
    Chip('v5p', 95.74 * 2**30, 459e12, 2765e9, 600e9, f'{GOOGLE}/v5p'),
    Chip('v6e', 31.25 * 2**30, 918e12, 1638e9, 400e9, f'{GOOGLE}/v6e'),
    Chip('h100', 80e9, 989e12, 3350e9, 450e9, f'H100 SXM, {NVIDIA}'),
    Chip('h200', 141e9, 989e12, 4800e9, 450e9, f'H200 SXM, {NVIDIA}'))}

# GpuTargetConfigProto of openxla/xla, without the fields that jax-cuda12-plugin 0.10.2 does not know.
GPU = '''gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
 shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth}
 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: {memory} shared_memory_per_block_optin: 232448
 cuda_compute_capability {{ major: 9 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "NVIDIA {name}"'''


def prepare(topology: str | None, count: int | None) -> None:
  """Settings that jax reads when it first looks for devices: this process computes on the CPU, and asks no metadata server about TPUs."""
  if topology and count:
    raise UserError('--topology says how many devices there are; --devices is for virtual ones of the CPU')
  if count is not None and count < 1:
    raise UserError(f'--devices {count}: must be at least 1')
  quiet = dict(TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost', TPU_WORKER_ID='0', TPU_ACCELERATOR_TYPE='v5litepod-4', TF_CPP_MIN_LOG_LEVEL='3',
               TPU_MIN_LOG_LEVEL='3', TPU_STDERR_LOG_LEVEL='3', ALLOW_MULTIPLE_LIBTPU_LOAD='1')        # several plans at once: none uses a TPU
  os.environ.update(quiet)
  logging.getLogger('jax._src.xla_bridge').setLevel(logging.CRITICAL)      # a GPU's plugin says at length that no GPU is here
  jax.config.update('jax_platforms', 'cpu')
  if count and 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
    try:
      jax.config.update('jax_num_cpu_devices', count)
    except RuntimeError:                                     # too late, there are devices already: `devices` says whether they are enough
      pass


def devices(topology: str | None, count: int | None) -> tuple[Chip | None, list]:
  """(chip, devices): of a described slice, 'v5e:16x16', or machine, 'h200:8'; (None, virtual devices of this CPU) without a topology.

  Raises UserError for what there is no description of, with the package that is missing.
  """
  if topology is None:
    here = jax.devices()
    if count and count > len(here):
      raise UserError(f'--devices {count}: this process has {len(here)} already')
    return None, here[:count]
  name, _, shape = topology.partition(':')
  if name not in CHIPS:
    raise UserError(f'--topology {topology}: {name!r} is not one of {", ".join(CHIPS)}')
  gpu = name.startswith('h')
  if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)?' if gpu else r'[1-9]\d*(x[1-9]\d*){1,2}', shape):
    raise UserError(f'--topology {topology}: expected ' + (f'{name}:GPUS or {name}:MACHINESxGPUS' if gpu else f'{name}:AxB or {name}:AxBxC'))
  module, extra = ('jax_plugins.xla_cuda12', 'plan-gpu') if gpu else ('libtpu', 'plan-tpu')
  if importlib.util.find_spec(module.split('.')[0]) is None or importlib.util.find_spec(module) is None:
    raise UserError(f"--topology {topology} needs the compiler of that chip: pip install 'ssmlab[{extra}]'")
  from jax.experimental import topologies
  jax.config.update('jax_enable_compilation_cache', False)   # what is kept of a described chip's program cannot be read again without the chip
  try:
    if not gpu:
      return CHIPS[name], list(topologies.get_topology_desc(topology, platform='tpu').devices)
    machines, _, gpus = shape.rpartition('x')
    layout = f'1x{machines or 1}x{gpus}'                     # slices x hosts x GPUs
    config = GPU.format(name=name.upper(), memory=int(CHIPS[name].memory), bandwidth=int(CHIPS[name].bandwidth))
    return CHIPS[name], list(topologies.get_topology_desc(layout, platform='cuda', target_config=config, topology=layout).devices)
  except Exception as error:                                 # what a plugin raises is of no common class
    raise UserError(f'--topology {topology}: {str(error).splitlines()[0]}') from error
