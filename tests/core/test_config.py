"""Overrides: typed, nearest-name errors, and a dump that is the config again."""

import dataclasses

import pytest

from ssmlab.core.config import UserError, dump, get, override, parse, paths


@dataclasses.dataclass(frozen=True)
class Part:
  size: int = 1
  rate: float = 0.5
  name: str = 'a'
  pair: tuple[int, ...] = (1, 2)
  limit: int | None = None
  on: bool = False

  def __post_init__(self):
    if self.size < 0:
      raise ValueError(f'size={self.size} is negative')


@dataclasses.dataclass(frozen=True)
class Whole:
  part: Part = Part()
  parts: tuple[Part, ...] = (Part(), Part(2))


def test_values_take_the_type_of_the_field():
  changed = parse(Whole(), ['part.size=3', 'part.rate=2', 'parts.1.name=x=y', 'part.limit=4', 'part.on=true', 'part.pair=(3,)', 'parts.0.rate=3e-4'])
  assert changed.part == Part(3, 2.0, 'a', (3,), 4, True) and type(changed.part.rate) is float
  assert changed.parts == (Part(rate=3e-4), Part(2, name='x=y'))
  assert parse(changed, ['part.limit=None']).part.limit is None
  assert parse(Whole(), ['part.size=1e4']).part.size == 10000
  assert parse(Whole(), ["part.name='quoted text'", 'parts.0.name=12']).part.name == 'quoted text'


@pytest.mark.parametrize('text, words', [
    ('part.siz=1', ("unknown field 'part.siz'", 'size, rate, name', 'did you mean part.size')),
    ('prt.size=1', ("'prt' is not one of part, parts",)), ('parts.7.size=1', ("'7' is not one of 0, 1",)),
    ('part.size.x=1', ('nothing below a int',)), ('part.size=foo', ("part.size='foo' is of type str", 'takes int', 'now 1')),
    ('part.size=1.5', ('takes int',)), ('part.on=1', ('takes bool',)), ('part.size=True', ('of type bool', 'takes int')),
    ('part.rate=x', ('takes float',)), ('part.size', ('not of the form path.to.field=value',)), ('part.size=-1', ('part.size=-1: size=-1 is negative',)),
    ('part.pair=3', ('takes tuple',)), ('part=3', ('takes Part',))])
def test_wrong_overrides_say_what_is_allowed(text, words):
  with pytest.raises(UserError) as error:
    parse(Whole(), [text])
  assert all(word in str(error.value) for word in words) and '\n' not in str(error.value)


def test_a_config_may_replace_a_config():
  assert override(Whole(), 'part', Part(9)).part.size == 9
  assert override(Whole(), 'parts', (Part(7),)).parts == (Part(7),)
  assert get(Whole(), 'parts.1.size') == 2 and 'parts.1.size' in paths(Whole())


def test_dump_is_python_that_gives_the_config_back():
  config = parse(Whole(), ['part.name=it\'s "x"', 'parts.1.limit=3'])
  scope = {}
  exec(dump(config), scope)
  assert scope['config']() == config
  assert dump(config, {__name__: 'elsewhere'}).startswith('from elsewhere import Part, Whole')
