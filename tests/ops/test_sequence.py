"""Operators whose time the mesh splits give one device's outputs, last state and gradients, and exchange summaries and halos, not tokens."""

import json

import pytest

from tests.eight_devices import lines
from tests.ops.sequence_sharded import BATCH, CASES, TIME

IDS = BATCH * TIME                                          # int32 that every device may have whole: numbers of documents
WHOLE = {'attention': 'k and v', 'attention both ways': 'k and v', 'slopes': 'k and v',
         'slstm': '2 heads cannot be split over more', 'inner descent': '2 heads cannot be split over more'}


@pytest.fixture(scope='module')
def rows():
  return {(row['name'], row['mesh']): row for row in map(json.loads, lines('ops/sequence_sharded'))}


@pytest.mark.parametrize('name', CASES)
def test_parts_are_the_whole(rows, name):
  for mesh in ('sequence', 'alone'):
    row = rows[name, mesh]
    assert row['difference'] < 2e-5, row
    gathered = max(row['collectives'].get(kind, 0) for kind in ('all-gather', 'all-to-all'))
    assert (gathered > IDS) == (name in WHOLE), row


def test_summaries_are_exchanged_in_log2_of_the_parts(rows):
  """Forward and backward, one exchange of a state for each doubling and one for the shift, of two arrays each, over eight parts."""
  for name in ('diagonal, real, sequential', 'matrix, by channel', 'matrix, rank one'):
    assert rows[name, 'alone']['counts']['collective-permute'] <= 2 * 2 * (3 + 1), rows[name, 'alone']
