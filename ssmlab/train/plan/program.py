"""What a compiled program does, read from its text: how often each instruction runs, its collectives, the bytes that it moves.

XLA's own cost analysis counts the body of a loop once; here it counts as often as the loop runs.  Where that cannot be read from the text, the
body counts once and what is in it is marked `at_least`.  Of the branches of a choice the one that moves most counts.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all', 'collective-permute', 'collective-broadcast')
FREE = ('parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'after-all', 'opt-barrier', 'partition-id', 'replica-id', 'domain')
BITS = {'pred': 8, 'token': 0}


@dataclasses.dataclass(frozen=True)
class Instruction:
  """shape: as written, with layouts; operands: names in the same computation; rest: everything after them."""
  name: str
  shape: str
  kind: str
  operands: tuple[str, ...]
  rest: str
  root: bool

  def called(self, *roles: str) -> list[str]:
    """Computations named in `rest`, by role: calls, body, condition, to_apply, branch_computations."""
    names = []
    for role in roles:
      for group in re.findall(rf'\b{role}=(\{{[^}}]*\}}|%?[\w.\-]+)', self.rest):
        names += re.findall(r'[\w.\-]+', group)
    return names


@dataclasses.dataclass(frozen=True)
class Collective:
  """axes: of the mesh, along which a group lies.  size: devices in it.  bytes: of the result on one device.  count: in a step.

  at_least: it is in a loop whose length is not known, so it runs `count` times or more.
  """
  kind: str
  axes: str
  size: int
  bytes: int
  count: int
  at_least: bool = False

  def sent(self) -> float:
    """Bytes that a device sends in a step for all of them, by the ring algorithms."""
    share = (self.size - 1) / self.size
    once = {'all-reduce': 2 * share, 'reduce-scatter': share * self.size, 'collective-permute': 1.0}.get(self.kind, share)
    return once * self.bytes * self.count


class Program:
  """The text of a compiled program for `mesh`, taken apart.

  on_chip: arrays in another memory space than the first are not in the device's main memory, as XLA:TPU writes it.
  times: how often each computation that is not fused runs.
  """

  def __init__(self, text: str, mesh, on_chip: bool):
    self.mesh, self.on_chip, (self.computations, self.entry) = mesh, on_chip, _computations(text)
    self.times, self._unknown = collections.Counter(), set()
    self._visit(self.entry, 1, False)

  def _visit(self, name: str, count: int, unknown: bool) -> None:
    self.times[name] += count
    self._unknown |= {name} if unknown else set()
    for instruction in self.computations[name].values():
      if instruction.kind == 'while':
        trips = self._trips(name, instruction)
        for body in instruction.called('body'):
          self._visit(body, count * (1 if trips is None else trips), unknown or trips is None)
      elif instruction.kind in ('call', 'async-start'):
        for body in instruction.called('to_apply', 'calls'):
          self._visit(body, count, unknown)
      elif instruction.kind == 'conditional':
        branches = instruction.called('true_computation', 'false_computation', 'branch_computations')
        self._visit(max(branches, key=lambda name: sum(self._moved(name, i) for i in self.computations[name].values())), count, unknown)

  def _trips(self, name: str, loop: Instruction) -> int | None:
    """Turns of a loop: as annotated, else from a condition `i < constant` (or through a fusion) whose i starts and grows by constants."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
    if known:
      return int(known.group(1))
    test = self._root(loop.called('condition')[0])
    direction, sides = re.search(r'direction=(\w+)', test.rest), [self._leaf(loop.called('condition')[0], operand) for operand in test.operands]
    if test.kind == 'fusion':
      inner = self._root(test.called('calls')[0])
      direction, sides = re.search(r'direction=(\w+)', inner.rest), [self._argument(test, operand, loop) for operand in inner.operands]
    if not direction or direction.group(1) != 'LT' or len(sides) != 2 or None in sides:
      return None
    counter, end = sides
    index = re.search(r'index=(\d+)', counter.rest)
    if counter.kind != 'get-tuple-element' or not index or (last := _constant(end)) is None:
      return None
    index = int(index.group(1))
    start = self._leaf(name, self._element(name, loop.operands[0], index))
    step = self._step(loop.called('body')[0], index)
    first = start and _constant(start)
    return None if first is None or not step else -(-(last - first) // step)

  def _argument(self, fusion: Instruction, operand: str, loop: Instruction) -> Instruction | None:
    """What an operand inside a fusion of the condition is outside of it."""
    inner = self.computations[fusion.called('calls')[0]][operand]
    if inner.kind != 'parameter':
      return inner
    return self._leaf(loop.called('condition')[0], fusion.operands[int(inner.rest.split(')')[0])])

  def _step(self, body: str, index: int) -> int | None:
    """By how much a loop's counter grows."""
    grown = self._leaf(body, self._element(body, self._root(body).name, index))
    if grown is None:
      return None
    where = body
    if grown.kind == 'fusion':
      where = grown.called('calls')[0]
      grown = self._root(where)
    if grown.kind != 'add':
      return None
    return next((value for operand in grown.operands if (value := _constant(self.computations[where][operand])) is not None), None)

  def _element(self, computation: str, name: str, index: int) -> str | None:
    found = self._leaf(computation, name)
    return found.operands[index] if found is not None and found.kind == 'tuple' else None

  def _leaf(self, computation: str, name: str | None) -> Instruction | None:
    """The instruction, seen through copies."""
    found = self.computations[computation].get(name)
    while found is not None and found.kind in ('copy', 'bitcast', 'copy-done', 'copy-start', 'opt-barrier'):
      found = self.computations[computation].get(found.operands[0])
    return found

  def _root(self, computation: str) -> Instruction:
    return next(instruction for instruction in self.computations[computation].values() if instruction.root)

  # Collectives.

  def collectives(self) -> list[Collective]:
    """Every kind, group and size, with its count in a step; the largest senders first.

    One that XLA:TPU has spread over a chain of fusions (start, work in between, done), which may pass through a loop, counts where it starts.
    """
    found = collections.Counter()
    for name, count in self.times.items():
      for key in self._of(name):
        found[(*key, name in self._unknown)] += count
    return sorted((Collective(*key[:4], count, key[4]) for key, count in found.items()), key=Collective.sent, reverse=True)

  def _of(self, computation: str) -> list[tuple[str, str, int, int]]:
    found = []
    for outer in self.computations[computation].values():
      for instruction in self._fused(outer) if outer.kind == 'fusion' else [outer]:
        kind, shape = instruction.kind.removesuffix('-start'), instruction.shape
        if kind not in KINDS or 'chain_id=' in instruction.rest and not outer.name.startswith('async-collective-start'):
          continue
        if kind == 'all-reduce' and any(name.startswith('all-reduce-scatter') for name in outer.called('calls')):
          kind, shape = 'reduce-scatter', outer.shape           # XLA:TPU's form of it: each device keeps its part of the sum
        axes, size = self._group(instruction.rest)
        if size > 1:
          found.append((kind, axes, size, _result(shape, instruction.kind)))
    return found

  def _fused(self, fusion: Instruction) -> Iterator[Instruction]:
    for name in fusion.called('calls'):
      for instruction in self.computations[name].values():
        yield from self._fused(instruction) if instruction.kind == 'fusion' else (instruction,)

  def _group(self, rest: str) -> tuple[str, int]:
    """(mesh axes that the first group spans, its size).  Devices are numbered in the order of the mesh."""
    group = _first_group(rest, self.mesh.size)
    places = np.stack(np.unravel_index(group, self.mesh.devices.shape))
    axes = [name for name, row in zip(self.mesh.axis_names, places) if len(set(row.tolist())) > 1]
    return ' x '.join(axes) or 'none', len(group)

  # Memory traffic.

  def traffic(self) -> float:
    """Bytes that a step reads from and writes to a device's main memory: operands and results of everything that is not fused.

    Slices and updates in place count what they touch.  An estimate: neither caches nor padding are known.
    """
    return sum(count * sum(self._moved(name, instruction) for instruction in self.computations[name].values()) for name, count in self.times.items())

  def _size(self, shape: str) -> float:
    return sum(count for count, layout in _arrays(shape) if not (self.on_chip and re.search(r'S\([1-9]', layout)))

  def _moved(self, computation: str, instruction: Instruction) -> float:
    size, kind = self._size, instruction.kind
    operands = [self.computations[computation][name] for name in instruction.operands if name in self.computations[computation]]
    if kind in FREE or kind in ('while', 'call', 'conditional') or kind.endswith(('-done', '-update')):
      return 0
    if kind == 'fusion':
      return self._fusion_moved(instruction, operands)
    if kind.endswith('-start'):                              # its shape names operands, results and flags
      whole = max((count for count, _ in _arrays(operands[0].shape)), default=0.0)
      taken = min(whole, _result(instruction.shape, 'slice-start')) if kind == 'slice-start' else whole
      return taken * (1 + (not self.on_chip)) if size(operands[0].shape) else taken
    if kind in ('dynamic-slice', 'slice', 'gather'):
      return 2 * size(instruction.shape)
    if kind == 'dynamic-update-slice':
      return 2 * size(operands[1].shape)
    if kind == 'scatter':
      return 3 * size(operands[-1].shape)
    return size(instruction.shape) + sum(size(o.shape) for o in operands)

  def _fusion_moved(self, fusion: Instruction, operands: list[Instruction]) -> float:
    size, body = self._size, self.computations[fusion.called('calls')[0]]
    users = collections.defaultdict(list)
    for instruction in body.values():
      for name in instruction.operands:
        users[name].append(instruction)

    def read(name: str, whole: float) -> float:
      """Bytes of a parameter that are read: only slices, if all its users slice it."""
      total = 0.0
      for user in users[name]:
        if user.kind == 'bitcast':
          total += read(user.name, whole)
        elif user.kind in ('dynamic-slice', 'slice', 'gather') and user.operands[0] == name:
          total += min(size(user.shape), whole)
        elif user.kind == 'dynamic-update-slice' and user.operands[0] == name or user.kind == 'tuple' or user.kind.removesuffix('-start') in KINDS:
          continue                                           # updated in place, passed on, or sent: counted with the collective
        else:
          return whole
      return min(total, whole)

    def written(instruction: Instruction) -> float:
      if instruction.kind == 'tuple':
        return sum(written(body[name]) for name in instruction.operands)
      if instruction.kind == 'bitcast':
        return written(body[instruction.operands[0]]) if instruction.operands[0] in body else 0.0
      if instruction.kind == 'dynamic-update-slice':
        return size(body[instruction.operands[1]].shape)
      if instruction.kind == 'parameter' or instruction.kind == 'get-tuple-element' or instruction.kind in KINDS:
        return 0.0
      return size(instruction.shape)
    root = next(instruction for instruction in body.values() if instruction.root)
    parameters = {int(i.rest.split(')')[0]): i.name for i in body.values() if i.kind == 'parameter'}
    whole = size(fusion.shape)                               # of a result that stays on the chip: nothing
    return sum(read(parameters[index], size(o.shape)) for index, o in enumerate(operands)) + min(written(root), whole)


def _computations(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """({computation: {name: instruction}}, the entry's name)."""
  found, entry, current = {}, '', None
  for line in text.splitlines():
    head = re.match(r'(ENTRY )?%?(\S+) \(.*\{$', line)
    if head:
      current = found.setdefault(head.group(2), {})
      entry = head.group(2) if head.group(1) else entry
    elif line.startswith('}'):
      current = None
    elif current is not None and (instruction := _instruction(line)):
      current[instruction.name] = instruction
  if not entry:
    raise ValueError('the compiled program has no entry computation: its text is not what this reads')
  return found, entry


def _instruction(line: str) -> Instruction | None:
  match = re.match(r'\s*(ROOT )?%?(\S+) = (.*?) ([a-z][\w\-]*)\(', line)
  if not match:
    return None
  depth, end = 1, match.end()
  while depth and end < len(line):
    depth += {'(': 1, ')': -1}.get(line[end], 0)
    end += 1
  inside = line[match.end():end - 1]
  kind = match.group(4)
  literal = kind in ('parameter', 'constant')
  operands = () if literal else tuple(re.findall(r'%([\w.\-]+)', inside))
  return Instruction(match.group(2), match.group(3), kind, operands, (inside + ')' if literal else '') + line[end:], bool(match.group(1)))


def _constant(instruction: Instruction) -> int | None:
  value = re.match(r'(-?\d+)\)', instruction.rest) if instruction.kind == 'constant' else None
  return int(value.group(1)) if value else None


def _arrays(shape: str) -> Iterator[tuple[float, str]]:
  """(bytes, layout) of every array in a shape."""
  for kind, dims, layout in re.findall(r'([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?', shape):
    bits = BITS[kind] if kind in BITS else int(re.search(r'\d+', kind).group())
    yield math.prod(int(n) for n in dims.split(',') if n) * bits / 8, layout


def _result(shape: str, kind: str) -> int:
  """Bytes of a collective's result; of one that is only started, whose shape is (operands, results, flags), of its second part."""
  if kind.endswith('-start') and kind != 'all-reduce-start' and shape.startswith('('):
    shape = _parts(shape[1:-1])[1]
  return int(sum(count for count, _ in _arrays(shape)))


def _parts(shapes: str) -> list[str]:
  """The shapes in a list of them; commas in brackets do not part."""
  parts, depth = [''], 0
  for sign in shapes:
    depth += {'(': 1, '[': 1, '{': 1, ')': -1, ']': -1, '}': -1}.get(sign, 0)
    parts = [*parts, ''] if sign == ',' and not depth else [*parts[:-1], parts[-1] + sign]
  return parts


def _first_group(rest: str, devices: int) -> list[int]:
  """The first of a collective's groups, in any of the forms that XLA writes."""
  numbers = lambda text: [int(n) for n in text.split(',')]
  if pairs := re.search(r'source_target_pairs=\{(.*?)\}\}', rest):
    moves = [numbers(pair) for pair in re.findall(r'\{([\d,]+)', pairs.group(1) + '}')]
    return _cycle([(a, b) for a, b in moves])
  if listed := re.search(r'replica_groups=\{\{([\d,]+)\}', rest):
    return numbers(listed.group(1))
  if iota := re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', rest):
    return _iota(iota.group(2), iota.group(3)).reshape(numbers(iota.group(1)))[0].tolist()
  if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", rest):
    axes = re.findall(r"'(\w+)'=(\d+)", named.group(1))
    shape = [int(n) for _, n in axes]
    ids = (_iota(named.group(2), named.group(3)) if named.group(2) else np.arange(math.prod(shape))).reshape(shape)
    chosen = {axis: (int(before or 1), int(size) if size else None) for axis, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named.group(4))}
    for place, (axis, size) in enumerate(axes):
      before, part = chosen.get(axis, (1, 1))
      part = int(size) if part is None else part
      after = int(size) // before // part
      ids = np.take(ids, np.arange(part) * after, axis=place)
    return ids.reshape(-1).tolist()
  if 'replica_groups={}' in rest or 'replica_groups' not in rest:
    return list(range(devices))
  raise ValueError(f'a collective\'s groups are written in a way that this does not read: {rest[:120]}')


def _iota(dims: str, order: str | None) -> np.ndarray:
  shape = [int(n) for n in dims.split(',')]
  ids = np.arange(math.prod(shape)).reshape(shape)
  return (ids.transpose([int(n) for n in order.split(',')]) if order else ids).reshape(-1)


def _cycle(moves: list[tuple[int, int]]) -> list[int]:
  """Devices that the longest chain of a permutation's moves goes through."""
  to = dict(moves)
  chains = []
  for start in to:
    chain = [start]
    while (after := to.get(chain[-1])) is not None and after not in chain:
      chain.append(after)
    chains.append(chain)
  return max(chains, key=len, default=[0])
