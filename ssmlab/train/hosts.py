"""One run on several hosts: how they find each other, agree, and end together.

A host is one process.  Without --hosts, JAX's own detection decides: TPU VMs and GKE, Slurm, indexed Kubernetes jobs, Open MPI.
"""

import atexit
import contextlib
import ctypes
import hashlib
import os
import pathlib
import re
import signal
import socket
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from jax._src.clusters import ClusterEnv                     # jax has no public form that only asks
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from ssmlab.core.config import UserError

HEARTBEAT = 30     # seconds without a sign of life after which a host is given up and the others end
JOIN = 300         # seconds that hosts wait for each other at the start

_workdir: pathlib.Path | None = None
_last_words: Callable[[], tuple[int, str]]


def start(hosts: str = '') -> None:
  """Joins the other hosts; does nothing for a single process.  To be called before any device is used.

  hosts: 'INDEX/COUNT@ADDRESS:PORT' with the address of host 0; 'alone': no others, whatever is detected; '': as detected.
  Raises UserError for a wrong `hosts`, and where host 0 does not answer within JOIN seconds.  From here on a host that ends takes the others with
  it: within HEARTBEAT seconds each says so in a line and ends with status 1.
  """
  found = None if hosts == 'alone' else _parsed(hosts) if hosts else _detected()
  if found is None:
    return
  address, count, index, devices = found
  _await(address, count, index)
  _say_when_aborted(lambda: (2, f'host {index} of {count}: not all hosts joined at {address} within {JOIN} s'))
  try:
    jax.distributed.initialize(address, count, index, devices, cluster_detection_method='deactivate', initialization_timeout=JOIN,
                               heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=HEARTBEAT)
  except RuntimeError as error:
    raise UserError(f'host {index} of {count} could not join at {address}: {str(error).splitlines()[0]}') from error
  _say_when_aborted(lambda: (1, _loss(address, count, index)))
  atexit.register(_say_when_aborted, lambda: (1, f'host {index} of {count} has ended; the others did not within {HEARTBEAT} s'))
  if index:
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)             # host 0 speaks for all


def _parsed(hosts: str) -> tuple[str, int, int, None]:
  match = re.fullmatch(r'(\d+)/(\d+)@(.+:\d+)', hosts)
  if not match or int(match[1]) >= int(match[2]):
    raise UserError(f"--hosts {hosts!r} is not 'alone' or of the form INDEX/COUNT@ADDRESS:PORT with INDEX from 0 to COUNT - 1, such as 0/2@10.0.0.1:8476")
  return match[3], int(match[2]), int(match[1]), None


def _detected():
  """(address, count, index, local devices) of a job of several processes, or None."""
  address = os.environ.get('JAX_COORDINATOR_ADDRESS')
  for cluster in ClusterEnv._cluster_types:
    if cluster.opt_in_only_method or cluster.__name__ == 'K8sCluster' and 'JOB_COMPLETION_INDEX' not in os.environ:
      continue                                               # a pod of no indexed job is alone
    try:
      if cluster.is_env_present():
        one = cluster.get_process_count() == 1
        return None if one else ClusterEnv.auto_detect_unset_distributed_params(address, None, None, None, None, JOIN)
    except RuntimeError as error:
      raise UserError(f'the other hosts cannot be found: {error}') from error
  if address:
    raise UserError(f'JAX_COORDINATOR_ADDRESS={address} is set, but not how many hosts there are: say --hosts INDEX/COUNT@{address}, or unset it')
  return None


def _await(address: str, count: int, index: int) -> None:
  """Returns when host 0 listens, or on host 0 if it can: JAX would end with a stack trace or a segmentation fault."""
  if index == 0:
    try:
      socket.create_server(('', int(address.rsplit(':', 1)[1]))).close()
    except OSError as error:
      raise UserError(f'host 0 of {count} cannot listen at port {address.rsplit(":", 1)[1]}: {error.strerror}; choose another') from error
  until = time.monotonic() + JOIN
  while index and not _answers(address):
    if time.monotonic() > until:
      raise UserError(f'host {index} of {count}: host 0 did not answer at {address} within {JOIN} s')
    time.sleep(0.2)


def _answers(address: str) -> bool:
  host, port = address.rsplit(':', 1)
  try:
    socket.create_connection((host.strip('[]'), int(port)), timeout=2).close()
    return True
  except OSError:
    return False


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_):
  """Says the last words.  JAX tells of a lost host by abort() in a thread of C++, which no Python handler outlives; one that C calls can still write."""
  status, line = _last_words()
  os.write(2, f'ssmlab: {line}\n'.encode())
  os._exit(status)


def _say_when_aborted(words: Callable[[], tuple[int, str]]) -> None:
  """words: () -> (exit status, line), asked when JAX aborts the process."""
  global _last_words
  _last_words = words
  ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)


def _loss(address: str, count: int, index: int) -> str:
  """What is said of a lost host."""
  who = 'host 0' if index and not _answers(address) else f'host {1 - index}' if count == 2 else 'another host'
  steps = [int(p.name) for p in _workdir.glob('checkpoints/*') if p.name.isdigit()] if _workdir else []
  kept = f'the last complete checkpoint is step {max(steps)} in {_workdir}' if steps else 'there is no complete checkpoint yet'
  return f'host {index} of {count} ends: {who} is gone (it ended, or gave no sign of life for {HEARTBEAT} s; JAX says more above); {kept}; start all hosts again to go on'


def watch(workdir: pathlib.Path) -> None:
  """The workdir whose last checkpoint is named when a host is lost."""
  global _workdir
  _workdir = workdir


def lead() -> bool:
  """Whether this is the host that writes and prints."""
  return jax.process_index() == 0


def wait(name: str) -> None:
  """Returns when all hosts are here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agree(what: str, value: str) -> None:
  """Raises UserError on every host if the hosts do not have the same value."""
  if jax.process_count() == 1:
    return
  digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
  found = multihost_utils.process_allgather(digest)
  other = [str(i) for i, row in enumerate(found) if (row != found[0]).any()]
  if other:
    raise UserError(f'host {", ".join(other)} of {len(found)}: not the {what} of host 0; start all hosts with the same command and the same files')


@contextlib.contextmanager
def together():
  """An error inside is raised when every host has one, or after HEARTBEAT seconds: if it came of a lost host, that is reported and the process ends."""
  try:
    yield
  except Exception:
    if jax.process_count() > 1:
      try:
        global_state.client.wait_at_barrier('ssmlab: error', 1000 * (HEARTBEAT + 5))
      except jax.errors.JaxRuntimeError as other:
        if 'DEADLINE_EXCEEDED' not in str(other):
          time.sleep(5)                                      # the abort comes in another thread
    raise


@contextlib.contextmanager
def preemption():
  """Gives a function, to be called once after each step: whether to save and stop there, the same on every host.

  On several hosts a SIGTERM to any of them, or the platform's notice, is agreed upon a few steps later.
  """
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  asked = []
  before = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
  try:
    yield lambda step: bool(asked)
  finally:
    signal.signal(signal.SIGTERM, before)
