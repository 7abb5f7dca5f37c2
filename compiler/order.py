"""The order of a frame's items: a list schedule, so that engines work on parts of different layers at once."""

from __future__ import annotations

from ..arch.accelerator import Accelerator
from ..arch.isa import Engine, Opcode
from . import estimate
from .ir import Buffer, Item, Memory, capacity

__all__ = ["arrange", "dependencies"]

_LIMITED = (Memory.SCRATCHPAD, Memory.ROW_SCALE, Memory.ROW_MAXIMA, Memory.ROW_MOMENTS)
"""Memories that hold what items write, and could overflow when more of it is alive at once."""


def arrange(
    accelerator: Accelerator, items: list[Item], room: float, patience: float = 1.0, lead: float = 0.0
) -> list[Item]:
    """The same items in another order that computes the same.

    Whenever an engine is free, it takes of the items that can start the one with the longest way to the end of the
    frame; an item that reads the same weights as the engine's item before goes first, so that they are loaded once.
    Buffers that are alive at once take at most `room` (a part) of a memory; where nothing fits, the order is the given one.
    The vector engine is taken to need `patience` times the cycles of the estimate. `lead` is a part of the frame: by so much
    further from the end are a layer's first positions taken to be than its last ones, so that a part goes through several
    layers while others wait, and the softmax of one hides behind the MLP of another.
    """
    return _Order(accelerator, items, room, patience, lead).run()


class _Order:
    def __init__(
        self, accelerator: Accelerator, items: list[Item], room: float, patience: float, lead: float
    ):
        self.items = items
        self.engines = [estimate.engine(item) for item in items]
        self.takes = [
            int(estimate.cycles(accelerator, item) * (patience if engine == Engine.VECTOR else 1))
            for item, engine in zip(items, self.engines, strict=True)
        ]
        self.before, self.after = dependencies(items)
        self.way = [0] * len(items)
        """Cycles from an item's start to the end of the frame, less what its first positions are ahead."""
        for index in range(len(items) - 1, -1, -1):
            self.way[index] = self.takes[index] + max(
                (self.way[later] for later in self.after[index]), default=0
            )
        most = lead * max(self.way, default=0)
        self.way = [way - most * item.place for way, item in zip(self.way, items, strict=True)]
        self.room = {memory: room * capacity(accelerator, memory) for memory in _LIMITED}
        self.touched: list[list[Buffer]] = []
        """Buffers of each item that live in `_LIMITED` memories, once each."""
        self.users: dict[Buffer, int] = {}
        for item in items:
            spans = [s for s in (*item.reads, *item.writes) if s.buffer.memory in _LIMITED]
            self.touched.append(list(dict.fromkeys(span.buffer for span in spans)))
            for buffer in self.touched[-1]:
                self.users[buffer] = self.users.get(buffer, 0) + 1
        resident = {b for b in self.users if b.data is not None}
        self.live = set(resident)
        self.used = dict.fromkeys(_LIMITED, 0)
        for buffer in resident:
            self.used[buffer.memory] += buffer.rows
        self.weights = [_weights(item) for item in items]

    def run(self) -> list[Item]:
        missing = [len(before) for before in self.before]
        ready: dict[Engine, list[int]] = {engine: [] for engine in Engine}
        begin = [0] * len(self.items)
        """Cycle from which an item could start."""
        for index, count in enumerate(missing):
            if not count:
                ready[self.engines[index]].append(index)
        free, last = dict.fromkeys(Engine, 0), dict.fromkeys(Engine)
        order: list[int] = []
        while len(order) < len(self.items):
            index, at = self._next(ready, begin, free, last)
            engine = self.engines[index]
            ready[engine].remove(index)
            order.append(index)
            end = at + self.takes[index]
            free[engine] = at + estimate.occupied(self.items[index], self.takes[index])
            last[engine] = self.weights[index]
            self._take(index)
            for later in self.after[index]:
                begin[later] = max(begin[later], end)
                missing[later] -= 1
                if not missing[later]:
                    ready[self.engines[later]].append(later)
        return [self.items[index] for index in order]

    def _next(self, ready, begin, free, last) -> tuple[int, int]:
        """The item that starts next, and when."""
        best = None
        for engine, candidates in ready.items():
            fitting = [index for index in candidates if self._fits(index)]
            if not fitting:
                continue
            start = min(max(free[engine], begin[index]) for index in fitting)
            at_once = [index for index in fitting if begin[index] <= start]

            def rank(index: int, engine: Engine = engine) -> tuple:
                if engine == Engine.LOAD:
                    return min(self.after[index], default=len(self.items)), index
                same = self.weights[index] is not None and self.weights[index] is last[engine]
                return not same, -self.way[index], index

            found = (start, min(at_once, key=rank))
            if best is None or found < best:
                best = found
        if best is None:
            index = min(index for candidates in ready.values() for index in candidates)
            return index, max(free[self.engines[index]], begin[index])
        return best[1], best[0]

    def _fits(self, index: int) -> bool:
        """Whether the buffers that an item begins leave every memory within its room."""
        more = dict.fromkeys(_LIMITED, 0)
        for buffer in self.touched[index]:
            if buffer not in self.live:
                more[buffer.memory] += buffer.rows
        return all(not rows or self.used[m] + rows <= self.room[m] for m, rows in more.items())

    def _take(self, index: int) -> None:
        for buffer in self.touched[index]:
            if buffer not in self.live:
                self.live.add(buffer)
                self.used[buffer.memory] += buffer.rows
            self.users[buffer] -= 1
            if not self.users[buffer] and buffer.data is None:
                self.live.discard(buffer)
                self.used[buffer.memory] -= buffer.rows


def _weights(item: Item) -> Buffer | None:
    """The weights that a MATRIX item brings from outside."""
    if item.opcode != Opcode.MATRIX:
        return None
    found = [s.buffer for s in item.reads if s.buffer.memory == Memory.WEIGHT and s.buffer.data is not None]
    return found[0] if found else None


def dependencies(items: list[Item]) -> tuple[list[set[int]], list[set[int]]]:
    """For each item the earlier ones that must be complete, and the later ones that wait for it."""
    before: list[set[int]] = [set() for _ in items]
    after: list[set[int]] = [set() for _ in items]
    history: dict[Buffer, list[tuple[int, int, int, bool]]] = {}
    for index, item in enumerate(items):
        accesses = [
            (span, writes)
            for spans, writes in ((item.reads, False), (item.writes, True))
            for span in spans
            if writes or span.buffer.data is None
        ]
        for span, writes in accesses:
            for first, end, earlier, wrote in history.get(span.buffer, ()):
                if first < span.first + span.rows and span.first < end and (writes or wrote):
                    before[index].add(earlier)
        before[index].discard(index)
        for span, writes in accesses:
            first, end = span.first, span.first + span.rows
            old = history.setdefault(span.buffer, [])
            if writes:
                old[:] = [a for a in old if a[2] == index or a[0] < first or a[1] > end]
            old.append((first, end, index, writes))
        for earlier in before[index]:
            after[earlier].add(index)
    return before, after
