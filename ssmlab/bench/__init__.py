"""Measurement of speed and memory: one module per suite, run by `ssmlab bench SUITE`.  Here what they share."""

import csv
import ctypes
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from ssmlab.core.config import UserError

Row = dict[str, Any]


def keep_memory() -> None:
  """From now on glibc keeps what a call gives back, for all threads together: otherwise the larger a call, the more of its time would be the system's,
  which clears pages for it.  Where the C library is another one, a line says so."""
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
  trim_threshold, mmap_max, arena_max = -1, -4, -8                                   # malloc.h; a threshold of -1 is never reached
  if mallopt is None or not all([mallopt(trim_threshold, -1), mallopt(mmap_max, 0), mallopt(arena_max, 1)]):
    print('this C library cannot be told to keep memory; long inputs will seem slower than they are', file=sys.stderr)


def seconds(action: Callable[[], Any], repeats: int) -> float:
  """Shortest of `repeats` calls, after one that compiles; waits for the arrays that the call returns."""
  return in_turns({0: action}, repeats)[0]


def in_turns(actions: Mapping[Any, Callable[[], Any]], repeats: int, calls: int = 1, pause: float = 0.0,
             failed: dict[Any, str] | None = None) -> dict[Any, float]:
  """{key: shortest seconds of an action}, taken in turns, so that what else the machine does meets them all; one call before does not count.

  repeats: turns.  calls: of an action in one turn; the first finds what another action left in the caches.  pause: seconds before each
  action, in which another library's threads come to rest.  failed: where an action that runs out of memory leaves the reason (and NaN as its
  time); None: it raises.
  """
  best = dict.fromkeys(actions, math.inf)
  for turn in range(repeats + 1):
    for key, action in actions.items():
      if failed and failed.get(key):
        continue
      time.sleep(pause)
      try:
        taken = min(_seconds(action) for _ in range(calls if turn else 1))
      except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if failed is None:
          raise
        failed[key], taken = f'memory: {str(error).splitlines()[0][:60]}', math.nan
      best[key] = taken if turn < 2 or taken != taken else min(taken, best[key])
  return best


def _seconds(action: Callable[[], Any]) -> float:
  begin = time.perf_counter()
  jax.block_until_ready(action())
  return time.perf_counter() - begin


def table(rows: Sequence[Row]) -> str:
  """The rows as text, one column per field, aligned."""
  cells = [list(rows[0])] + [[_cell(x) for x in row.values()] for row in rows]
  widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
  return '\n'.join('  '.join(cell.rjust(width) for cell, width in zip(line, widths)) for line in cells)


def _cell(value: Any) -> str:
  if not isinstance(value, float):
    return str(value)
  return f'{value:.1e}' if 0 < abs(value) < 0.05 else f'{value:.2f}' if abs(value) < 10 else f'{value:.1f}'


def table_path(text: str) -> pathlib.Path:
  """A file name for `write`; raises UserError for a suffix that it does not write."""
  if not text.endswith(('.json', '.csv')):
    raise UserError(f'-o {text}: expected a name that ends in .json or .csv')
  return pathlib.Path(text)


def write(path: pathlib.Path, rows: Sequence[Row]) -> None:
  """The rows as .json or .csv, by the path's suffix; folders are made."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == '.json':
    path.write_text(json.dumps(rows, indent=1) + '\n')
    return
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
