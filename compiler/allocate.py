"""Rows for buffers: each memory is packed by lifetime, largest buffer first, into the smallest gap that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ..arch.accelerator import Accelerator
from .ir import Buffer, Item, Memory, capacity

__all__ = ["Overflow", "allocate", "lifetimes", "peak"]

_RESTS = (8, 4, 2, 1, 0)
"""For how many items rows rest before they are used again, best first: who reuses rows waits for their last user."""


_ORDERS: tuple[Callable[[int, int, int], tuple[int, ...]], ...] = (
    lambda rows, first, last: (-rows, first),
    lambda rows, first, last: (-rows * (last - first + 1), first),
    lambda rows, first, last: (first - last, -rows),
    lambda rows, first, last: (first, -rows),
)
"""Which buffers are placed first, by rows, first and last user."""


class Overflow(Exception):
    """A memory that is too small; `buffer` found no place."""

    def __init__(self, memory: Memory, buffer: Buffer, needed: int):
        super().__init__(f"{memory.name} must have at least {needed} rows")
        self.memory, self.buffer, self.needed = memory, buffer, needed


@dataclasses.dataclass
class Life:
    """Items first..last use the buffer."""

    first: int
    last: int

    def meets(self, other: Life) -> bool:
        """Whether both are alive at once."""
        return self.first <= other.last and other.first <= self.last


def lifetimes(items: list[Item], memory: Memory) -> dict[Buffer, Life]:
    """First and last item that touches each buffer of a memory."""
    lives: dict[Buffer, Life] = {}
    for index, item in enumerate(items):
        for span in (*item.reads, *item.writes):
            if span.buffer.memory == memory:
                lives.setdefault(span.buffer, Life(index, index)).last = index
    return lives


def peak(lives: dict[Buffer, Life]) -> int:
    """The largest sum of rows alive at once."""
    changes: dict[int, int] = {}
    for buffer, life in lives.items():
        changes[life.first] = changes.get(life.first, 0) + buffer.rows
        changes[life.last + 1] = changes.get(life.last + 1, 0) - buffer.rows
    level = highest = 0
    for index in sorted(changes):
        level += changes[index]
        highest = max(highest, level)
    return highest


def allocate(accelerator: Accelerator, items: list[Item], memory: Memory) -> int:
    """Choose `row` of every buffer of `memory` in `items`: those of the scratchpad with data one after the other from
    row 0, those that items write above them for their lifetimes; in the scratchpad at multiples of `private`. Returns the rows taken. Raises Overflow."""
    size, base = capacity(accelerator, memory), 0
    unit = accelerator.private if memory == Memory.SCRATCHPAD else 1
    found = lifetimes(items, memory)
    lives = {buffer: life for buffer, life in found.items() if buffer.data is None}
    for buffer in [b for b in found if b not in lives and memory == Memory.SCRATCHPAD]:
        crosses = (
            base // accelerator.scratchpad_rows != (base + buffer.rows - 1) // accelerator.scratchpad_rows
        )
        if buffer.whole and crosses:
            base = -(-base // accelerator.scratchpad_rows) * accelerator.scratchpad_rows
        buffer.row = base
        base += -(-buffer.rows // unit) * unit
    if base + peak(lives) > size:
        raise Overflow(memory, max(found, key=lambda b: b.rows), base + peak(lives))
    if not lives:
        return base
    region = accelerator.scratchpad_rows if memory == Memory.SCRATCHPAD else size
    rivals = _rivals(items, memory) if region < size else {}
    for rest, near in ((rest, near) for rest in _RESTS for near in ((region, rivals), (size, {}))):
        try:
            longer = {buffer: Life(life.first, life.last + rest) for buffer, life in lives.items()}
            _pack(longer, base, size, *near, accelerator.scratchpad_rows, unit)
            return max(buffer.row + buffer.rows for buffer in lives)
        except Overflow as overflow:
            last = overflow
    for order in _ORDERS[1:]:
        try:
            _pack(lives, base, size, size, {}, accelerator.scratchpad_rows, unit, order)
            return max(buffer.row + buffer.rows for buffer in lives)
        except Overflow as overflow:
            last = overflow
    raise last


def _pack(
    lives: dict[Buffer, Life],
    base: int,
    size: int,
    region: int,
    rivals: dict[Buffer, dict[Buffer, int]],
    border: int,
    step: int,
    order: Callable[[int, int, int], tuple[int, ...]] = _ORDERS[0],
) -> None:
    """Place in `order`, `whole` buffers not across a multiple of `border`, all at multiples of `step`. Of the places that fit, the one whose
    region has the fewest rivals, then the smallest gap, then the lowest row."""
    placed: list[Buffer] = []
    for buffer in sorted(lives, key=lambda b: order(b.rows, lives[b].first, lives[b].last)):
        ends = {b: -(-(b.row + b.rows) // step) * step for b in placed if lives[b].meets(lives[buffer])}
        taken = sorted((b.row, end) for b, end in ends.items())
        gaps, at = [], base
        for first, end in [*taken, (size, size)]:
            if first - at >= buffer.rows:
                gaps.append((at, first))
            at = max(at, end)
        places = [(at, end - at) for at, end in gaps]
        for at, end in gaps:
            unit = border if buffer.whole else region
            edges = range(-(-at // unit) * unit, end, unit)
            places += [(edge, end - edge) for edge in edges if edge + buffer.rows <= end and edge > at]
        if buffer.whole:
            last = buffer.rows - 1
            places = [place for place in places if place[0] // border == (place[0] + last) // border]
        if not places:
            raise Overflow(buffer.memory, buffer, size + buffer.rows)

        def cost(place: tuple[int, int], buffer: Buffer = buffer) -> tuple[int, int, int]:
            weights = rivals.get(buffer, {})
            near = sum(
                w for b, w in weights.items() if b.row is not None and b.row // region == place[0] // region
            )
            crosses = place[0] // region != (place[0] + buffer.rows - 1) // region
            return near + crosses, place[1], place[0]

        buffer.row = min(places, key=cost)[0]
        placed.append(buffer)


def _rivals(items: list[Item], memory: Memory) -> dict[Buffer, dict[Buffer, int]]:
    """Pairs of buffers that are read at the same time: by one item (weight 4) or by neighbours (weight 1)."""
    rivals: dict[Buffer, dict[Buffer, int]] = {}
    reads = [{s.buffer for s in item.reads if s.buffer.memory == memory} for item in items]
    for index, mine in enumerate(reads):
        for distance, weight in ((0, 4), (1, 1)):
            if index < distance or (distance and items[index - 1].opcode == items[index].opcode):
                continue
            for x in mine:
                for y in reads[index - distance]:
                    if x is not y:
                        for u, v in ((x, y), (y, x)):
                            rivals.setdefault(u, {})[v] = rivals.get(u, {}).get(v, 0) + weight
    return rivals
