"""The long-convolution suite at sizes that take seconds: every part, what is left out, the crossover, the files."""

import json
import math

import pytest

from ssmlab.bench import longconv


def rows_of(ours, theirs):
  return [dict(name=name, length=length, both_s=taken) for name, line in (('Hyena', ours), ('attention', theirs)) for length, taken in zip((1, 4, 16), line)]


@pytest.mark.parametrize('ours, theirs, said', [
    ((1.0, 2.0, 4.0), (0.5, 4.0, 32.0), '2 tokens'), ((1, 1, 1), (2, 2, 2), 'below 1 tokens'), ((3, 3, 3), (1, 1, 1), 'not below 16 tokens'),
    ((1, 1, 1), (0.5, 2, math.nan), '2 tokens')])
def test_crossover(ours, theirs, said):
  assert longconv.crossover(rows_of(ours, theirs), 'both') == said


def test_the_suite(tmp_path, capsys):
  longconv.main(f'--lengths 16 32 --width 8 --modes 2 --batch 1 --repeats 1 --budget 1 -o {tmp_path}'.split())
  said = capsys.readouterr().out
  assert 'Hyena is faster than attention' in said and 'width 8' in said
  operator, generated = (json.loads((tmp_path / f'{name}.json').read_text()) for name in ('operator', 'generation'))
  assert len(operator) == 4 and all(row['forward_s'] > 0 < row['both_s'] and row['left_out'] == '' for row in operator)
  assert len(generated) == 8 and all(row['timed'] == row['length'] for row in generated)
  assert (tmp_path / 'longconv.png').read_bytes().startswith(b'\x89PNG')


def test_what_would_take_too_long_is_said():
  rows = longconv.against_attention((16, 32), 8, 1, 0)
  assert all(row['left_out'] == '' for row in rows if row['length'] == 16)
  assert all(math.isnan(row['both_s']) and 'both: about' in row['left_out'] for row in rows if row['length'] == 32)
