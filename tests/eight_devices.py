"""Scripts of the tests that need a mesh: a process of their own, with eight virtual devices."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
# What is asked is what the partitioner makes of a program, not how fast it is: without LLVM's optimisation it compiles in half the time.
FLAGS = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'


def lines(script: str, *arguments: str) -> list[str]:
  """What tests/SCRIPT.py prints."""
  environment = dict(os.environ, XLA_FLAGS=FLAGS, JAX_PLATFORMS='cpu', PYTHONPATH=str(ROOT))
  done = subprocess.run([sys.executable, str(ROOT / 'tests' / f'{script}.py'), *arguments], capture_output=True, text=True, env=environment, timeout=1200)
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout.splitlines()
