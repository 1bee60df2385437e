"""Run by test_hosts.py as two processes with two devices each: INDEX/2@ADDRESS:PORT.  A batch whose rows each host reads for itself is the whole batch on any mesh."""

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
  half, all_rows = range(4 * jax.process_index(), 4 * jax.process_index() + 4), range(8)
  sizes = {(4, 1, 1, 1): half, (2, 2, 1, 1): half, (2, 1, 1, 2): half, (2, 1, 2, 1): half, (1, 2, 1, 2): half,
           (1, 1, 4, 1): all_rows, (1, 1, 1, 4): all_rows}                # tensor or time over both hosts
  for order in (range(4), (0, 2, 1, 3), (3, 1, 2, 0)):
    for size, held in sizes.items():
      mesh = Mesh(devices[list(order)].reshape(size), meshes.AXES, axis_types=(AxisType.Auto,) * 4)
      rows = share(mesh, 8)
      assert list(order) != [0, 1, 2, 3] or rows.tolist() == list(held), (size, rows)
      whole = place({name: value[rows] for name, value in batch.items()}, mesh, 8)
      for name, value in whole.items():
        assert (multihost_utils.process_allgather(value, tiled=True) == batch[name]).all(), (order, size, name)
  hosts.wait('end')


if __name__ == '__main__':
  main()
