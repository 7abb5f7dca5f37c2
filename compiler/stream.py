"""Weights, parameters and tables on their way in: what stays on chip, what is loaded in every frame, and when.

Data that stays is loaded once by the setup section. The rest shares a ring of rows in each memory: data enters in
the order of its use, as early as the rows are free again, so that loading overlaps the computing of what came before.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools

import numpy as np

from ..arch.accelerator import Accelerator
from ..arch.isa import Engine, Opcode, Region
from . import estimate
from .ir import PAGE_ROWS, At, Buffer, Item, Memory, Span, row_bytes
from .order import dependencies

__all__ = ["Image", "Plan", "load", "plan", "residents", "setup_loads"]

_ROWS_MAX = 65535
_QUEUE_AHEAD = 2
"""LOADs that may wait in the engine's queue (of 4) without holding up the instructions behind them."""
_SHARES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625)
"""Parts of the free rows that are tried as rings."""
_TOLERANCE = 1.005
"""Estimated cycles that count as equal: then what loads less is better."""


class Image:
    """The WEIGHTS region while it grows."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._parts: list[np.ndarray] = []
        self._addresses: dict[bytes, int] = {}
        self.size = 0

    def address(self, data: np.ndarray) -> int:
        """Offset of memory rows (N, row bytes), which are appended unless equal ones are there."""
        key = data.tobytes()
        if key not in self._addresses:
            pitch = self.accelerator.pitch(data.shape[1])
            self._addresses[key] = self.size
            self._parts.append(np.pad(data, ((0, 0), (0, pitch - data.shape[1]))).ravel())
            self.size += self._parts[-1].size
        return self._addresses[key]

    def bytes(self) -> np.ndarray:
        """The region, uint8."""
        return np.concatenate([np.zeros(0, np.uint8), *self._parts])


def load(
    image: Image, memory: Memory, data: np.ndarray, row: int | At, tag: int, writes: tuple[Span, ...]
) -> Item:
    """A LOAD of data from the WEIGHTS region."""
    values = {"target": memory.value, "region": Region.WEIGHTS, "offset": image.address(data), "row": row}
    return Item(opcode=Opcode.LOAD, tag=tag, values=values | {"rows": len(data)}, writes=writes)


def residents(items: list[Item], memory: Memory) -> list[Buffer]:
    """Buffers with data that items read, in order of first use."""
    found = (span.buffer for item in items for span in item.reads)
    return list(dict.fromkeys(b for b in found if b.memory == memory and b.data is not None))


def setup_loads(image: Image, accelerator: Accelerator, buffers: list[Buffer]) -> list[Item]:
    """LOADs of resident buffers that have rows; neighbours of one memory are loaded together."""
    runs: list[list[Buffer]] = []
    for buffer in sorted(buffers, key=lambda b: (b.memory.value, b.row)):
        last = runs[-1][-1] if runs else None
        if (
            last is not None
            and last.memory == buffer.memory
            and last.row + len(last.data) == buffer.row
            and buffer.row + len(buffer.data) - runs[-1][0].row <= _ROWS_MAX
        ):
            runs[-1].append(buffer)
        else:
            runs.append([buffer])
    items = []
    for run in runs:
        first, data = (
            run[0],
            np.concatenate([b.data.reshape(-1, row_bytes(accelerator, b.memory)) for b in run]),
        )
        spans = tuple(Span(b, 0, len(b.data)) for b in run)
        items.append(load(image, first.memory, data, first.row, first.tag, spans))
    return items


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What stays, and when the rest is loaded."""

    cycles: int
    """Of a frame, estimated."""
    rows: dict[Buffer, int]
    """First row of the data that stays."""
    copies: list[_Copy]
    uses: dict[int, dict[Buffer, _Copy]]
    """By item: what it reads of the rings."""
    begins: list[int]
    """Estimated start of each item."""
    bytes: int
    """Loaded in every frame."""

    def insert(self, image: Image, items: list[Item]) -> list[Item]:
        """Place what stays; `items` with the LOADs of the rest, and reading that."""
        for buffer, row in self.rows.items():
            buffer.row = row
        latest = list(itertools.accumulate(self.begins, max))
        before: dict[int, list[Item]] = {}
        loads = [(copy, piece) for copy in self.copies for piece in copy.pieces]
        at = 0
        for index, (copy, piece) in enumerate(loads):
            ready = loads[index - _QUEUE_AHEAD][1].begin if index >= _QUEUE_AHEAD else 0
            at = max(at, copy.behind, piece.earliest, min(bisect.bisect_left(latest, ready), copy.first))
            buffer, first, end = copy.buffer, piece.first, piece.end
            span, data = Span(buffer, first, end - first), buffer.data[first:end]
            made = load(image, buffer.memory, data, At(buffer, first), buffer.tag, (span,))
            before.setdefault(at, []).append(made)
        merged = []
        for index, item in enumerate(items):
            found = {buffer: copy.buffer for buffer, copy in self.uses.get(index, {}).items()}
            merged += [*before.get(index, []), item.reading(found) if found else item]
        return merged


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Rows first..end of a copy, loaded together."""

    first: int
    end: int
    earliest: int
    """Item before which the LOAD may stand at the earliest."""
    begin: int
    """Estimated start of the LOAD."""


@dataclasses.dataclass(eq=False)
class _Copy:
    """Data in a ring, from its LOADs to its last reader."""

    buffer: Buffer
    """A copy of the layer's buffer, with its rows."""
    pieces: list[_Piece]
    first: int
    last: int
    """Items that read it."""
    end: int
    """Estimated end of its LOADs."""
    behind: int
    """Item before which its LOADs may stand at the earliest, because others go first that need not wait."""
    done: int = 0
    """Estimated end of its last reader."""

    def meets(self, first: int, end: int) -> int:
        """How many of its rows are among first..end of the memory."""
        return max(0, min(end, self.buffer.row + self.buffer.rows) - max(first, self.buffer.row))


class _Ring:
    """Rows first..first+size of a memory, filled in order and reused from the beginning. Where two pieces of data do not fit
    beside each other, they take turns at both ends, so that only the rows which they share wait for the one before."""

    def __init__(self, first: int, size: int):
        self.first, self.size, self.head = first, size, first
        self.copies: list[_Copy] = []
        self.latest: dict[Buffer, _Copy] = {}

    def current(self, buffer: Buffer) -> _Copy | None:
        """The copy of a buffer, if it is still there."""
        copy = self.latest.get(buffer)
        return copy if copy in self.copies else None

    def enter(self, buffer: Buffer, index: int, free: int, row_cycles: int, behind: int) -> _Copy | None:
        """A new copy for item `index`, loaded `behind` an item at `row_cycles` a row when the engine is `free` and its rows are;
        None where they are not."""
        if buffer.rows > self.size:
            return None
        start, rows = self.place(buffer.rows), len(buffer.data)
        edges = {0, rows}
        if self.copies:
            before = self.copies[-1].buffer
            edges |= {min(max(0, row - start), rows) for row in (before.row, before.row + before.rows)}
        pieces = []
        for first, end in itertools.pairwise(sorted(edges)):
            gone = [copy for copy in self.copies if copy.meets(start + first, start + end)]
            earliest = max([1, *(copy.last + 1 for copy in gone)])
            pieces.append((max([0, *(copy.done for copy in gone)]), earliest, first, end))
        if max(earliest for _, earliest, _, _ in pieces) > index:
            return None
        made = []
        for ready, earliest, first, end in sorted(pieces):
            free = max(free, ready)
            made.append(_Piece(first, end, earliest, free))
            free += (end - first) * row_cycles
        copy = _Copy(dataclasses.replace(buffer, row=start), made, index, index, free, behind)
        self.copies = [c for c in self.copies if not c.meets(start, start + buffer.rows)] + [copy]
        self.latest[buffer], self.head = copy, start + buffer.rows
        return copy

    def place(self, rows: int) -> int:
        """The first row for a new copy: behind the last one, or at that end of the ring where it shares fewer rows with it."""
        if not self.copies:
            return self.first
        if self.head + rows <= self.first + self.size:
            return self.head
        ends, last = (self.first, self.first + self.size - rows), self.copies[-1]
        return min(ends, key=lambda row: last.meets(row, row + rows))


def plan(accelerator: Accelerator, items: list[Item], free: dict[Memory, tuple[int, int]]) -> Plan | Memory:
    """The fastest plan, by estimate, for the data of the memories in `free` (row number and count of the rows that
    other buffers leave); among equally fast ones the one that loads least. A memory that is too small where there is none."""
    work = _Work(accelerator, items)
    if all(work.total(memory) <= rows for memory, (_, rows) in free.items()):
        return work.run({memory: (first, rows, 0) for memory, (first, rows) in free.items()})
    tried = []
    for share in _SHARES:
        rings = {}
        for memory, (first, rows) in free.items():
            unit = PAGE_ROWS if memory == Memory.TABLE else 1
            ring = min(rows, max(work.largest(memory), int(rows * share))) // unit * unit
            rings[memory] = (first, rows, 0 if work.total(memory) <= rows else ring)
        tried.append(work.run(rings))
    plans = [found for found in tried if isinstance(found, Plan)]
    if not plans:
        return tried[0]
    fast = min(found.cycles for found in plans) * _TOLERANCE
    return min((found for found in plans if found.cycles <= fast), key=lambda found: found.bytes)


class _Work:
    """The items of a frame, with what they read and how long they take."""

    def __init__(self, accelerator: Accelerator, items: list[Item]):
        self.accelerator, self.items = accelerator, items
        self.costs = [estimate.cycles(accelerator, item) for item in items]
        self.beats = {memory: accelerator.beats(row_bytes(accelerator, memory)) for memory in Memory}
        self.engines = [estimate.engine(item) for item in items]
        self.before, _ = dependencies(items)
        self.read = [_data(item) for item in items]
        self.users: dict[Buffer, list[int]] = {}
        for index, found in enumerate(self.read):
            for buffer in found:
                self.users.setdefault(buffer, []).append(index)

    def buffers(self, memory: Memory) -> list[Buffer]:
        """Data of a memory in order of first use."""
        return [buffer for buffer in self.users if buffer.memory == memory]

    def total(self, memory: Memory) -> int:
        """Rows of all data of a memory."""
        return sum(buffer.rows for buffer in self.buffers(memory))

    def largest(self, memory: Memory) -> int:
        """Rows of the largest piece of data."""
        return max((buffer.rows for buffer in self.buffers(memory)), default=0)

    def load_cycles(self, buffer: Buffer) -> int:
        """Cycles of a LOAD."""
        return len(buffer.data) * self.beats[buffer.memory]

    def kept(self, memory: Memory, rows: int) -> list[Buffer]:
        """Data that stays in so many rows: the frame's first, then what is loaded longest for the computing that
        it serves, spread over the frame."""
        found = self.buffers(memory)

        def worth(index: int) -> tuple[int, int]:
            buffer = found[index]
            served = sum(self.costs[user] for user in self.users[buffer])
            ratio = self.load_cycles(buffer) * len(self.users[buffer]) / max(1, served)
            spread = int(f"{index:016b}"[::-1], 2)
            return (-99 if index == 0 else -round(np.log2(max(ratio, 1e-9))), spread)

        kept = []
        for index in sorted(range(len(found)), key=worth):
            if found[index].rows <= rows:
                kept.append(found[index])
                rows -= found[index].rows
        return kept

    def run(self, places: dict[Memory, tuple[int, int, int]]) -> Plan | Memory:
        """The plan for (first row, rows, rows of them in the ring) of each memory, or the memory that is too small."""
        rows: dict[Buffer, int] = {}
        rings: dict[Memory, _Ring] = {}
        for memory, (first, count, ring) in places.items():
            for buffer in self.kept(memory, count - ring):
                rows[buffer] = first
                first += buffer.rows
            rings[memory] = _Ring(first, places[memory][0] + count - first)
        free, ends = dict.fromkeys(Engine, 0), []
        copies, uses, begins, loaded, behind = [], {}, [], 0, 0
        for index, item in enumerate(self.items):
            begin = max((ends[earlier] for earlier in self.before[index]), default=0)
            for buffer in self.read[index]:
                if buffer in rows or buffer.memory not in rings:
                    continue
                ring = rings[buffer.memory]
                copy = ring.current(buffer)
                if copy is None:
                    copy = ring.enter(buffer, index, free[Engine.LOAD], self.beats[buffer.memory], behind)
                    if copy is None:
                        return buffer.memory
                    copies.append(copy)
                    free[Engine.LOAD] = copy.end
                    loaded += self.load_cycles(buffer) * self.accelerator.line_bytes
                copy.last = index
                uses.setdefault(index, {})[buffer] = copy
                begin = max(begin, copy.end)
            engine = self.engines[index]
            if engine == Engine.LOAD and not self.before[index]:
                behind = index + 1
            begin = max(begin, free[engine])
            end = begin + self.costs[index]
            free[engine] = begin + estimate.occupied(item, self.costs[index])
            begins.append(begin)
            ends.append(end)
            for copy in uses.get(index, {}).values():
                copy.done = end
        return Plan(
            cycles=max(ends, default=0), rows=rows, copies=copies, uses=uses, begins=begins, bytes=loaded
        )


def _data(item: Item) -> list[Buffer]:
    """What an item reads of the data memories."""
    found = (span.buffer for span in item.reads)
    return list(dict.fromkeys(b for b in found if b.data is not None and b.memory != Memory.SCRATCHPAD))
