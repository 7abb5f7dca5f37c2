"""Rows for buffers: each memory is packed by lifetime, largest buffer first, into the smallest gap that fits."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from ..arch.accelerator import Accelerator
from .ir import Buffer, Item, Memory, capacity
from .ports import Meeting, meetings

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
_CYCLES = 64
"""Fewer lost ones do not count."""


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
    rivals = meetings(accelerator, items) if region < size else {}
    for rest, (near, edges) in itertools.product(_RESTS, ((rivals, True), (rivals, False), ({}, False))):
        try:
            longer = {buffer: Life(life.first, life.last + rest) for buffer, life in lives.items()}
            _pack(longer, base, size, region, unit, near, edges)
            return max(buffer.row + buffer.rows for buffer in lives)
        except Overflow as overflow:
            last = overflow
    for order in _ORDERS[1:]:
        try:
            _pack(lives, base, size, region, unit, {}, False, order)
            return max(buffer.row + buffer.rows for buffer in lives)
        except Overflow as overflow:
            last = overflow
    raise last


def _pack(
    lives: dict[Buffer, Life],
    base: int,
    size: int,
    region: int,
    step: int,
    rivals: dict[Buffer, list[Meeting]],
    edges: bool,
    order: Callable[[int, int, int], tuple[int, ...]] = _ORDERS[0],
) -> None:
    """Place in `order`, `whole` buffers not across a multiple of `region`, all at multiples of `step`. Of the places that fit (begins of gaps,
    with `edges` also of regions), the one that loses the fewest cycles to rivals in the same regions, then the smallest
    gap, then the lowest row."""
    count = -(-size // region)
    placed: dict[Buffer, None] = {}
    fixed = {
        meeting.other for found in rivals.values() for meeting in found if meeting.other.data is not None
    }
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
            begins = range(-(-at // region) * region, end, region) if edges or buffer.whole else ()
            places += [(edge, end - edge) for edge in begins if edge + buffer.rows <= end and edge > at]
        if buffer.whole:
            last = buffer.rows - 1
            places = [place for place in places if place[0] // region == (place[0] + last) // region]
        if not places:
            raise Overflow(buffer.memory, buffer, size + buffer.rows)

        lost: dict[tuple[int, int], np.ndarray] = {}
        for meeting in rivals.get(buffer, ()):
            other = meeting.other
            if other in placed or other in fixed:
                by_region = lost.setdefault(meeting.mine, np.zeros(count))
                first, rows = meeting.its
                by_region += meeting.cycles * _shares(other.row + first, rows, region, count)

        def cost(place: tuple[int, int], lost=lost) -> tuple[int, int, int]:
            near = sum(
                float(by_region @ _shares(place[0] + first, rows, region, count))
                for (first, rows), by_region in lost.items()
            )
            return int(near) // _CYCLES, place[1], place[0]

        buffer.row = min(places, key=cost)[0]
        placed[buffer] = None


def _shares(row: int, rows: int, region: int, count: int) -> np.ndarray:
    """Parts of rows row..row+rows in each of `count` regions."""
    edges = np.arange(count + 1) * region
    return np.diff(np.clip(edges, row, row + rows)) / rows
