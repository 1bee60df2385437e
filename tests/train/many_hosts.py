"""Run by test_hosts.py as each of several processes: INDEX/COUNT@ADDRESS.  A batch whose rows each host reads for itself is the whole batch on any mesh."""

import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from ssmlab.core import mesh as meshes
from ssmlab.eval.heldout import place, share
from ssmlab.train import hosts


def main():
  hosts.start(sys.argv[1])
  devices = np.array(jax.devices())
  batch = dict(tokens=np.arange(8 * 4, dtype=np.int32).reshape(8, 4), labels=np.arange(8, dtype=np.int32))
  sizes = [(4, 1, 1, 1), (2, 2, 1, 1), (1, 1, 4, 1), (1, 1, 1, 4), (2, 1, 1, 2), (2, 1, 2, 1), (1, 2, 1, 2)]
  for order in (range(4), (0, 2, 1, 3), (3, 1, 2, 0)):
    for size in sizes:
      mesh = Mesh(devices[list(order)].reshape(size), meshes.AXES, axis_types=(AxisType.Auto,) * 4)
      rows = share(mesh, 8)
      whole = place({name: value[rows] for name, value in batch.items()}, mesh, 8)
      for name, value in whole.items():
        assert (multihost_utils.process_allgather(value, tiled=True) == batch[name]).all(), (order, size, name)
      if jax.process_index() == 0 and list(order) == [0, 1, 2, 3]:
        print(*size, ':', *rows, flush=True)
  hosts.wait('end')


if __name__ == '__main__':
  main()
