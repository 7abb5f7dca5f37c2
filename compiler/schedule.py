"""Semaphores: which instruction waits for which, from the rows that they read and write."""

from __future__ import annotations

import dataclasses

from ..arch.isa import Engine, semaphore
from .ir import Item, Memory

__all__ = ["synchronize"]


@dataclasses.dataclass
class _Access:
    first: int
    end: int
    index: int
    writes: bool


def synchronize(items: list[Item]) -> list[tuple[int, int]]:
    """The fields (wait, signal) of items whose buffers have rows.

    An item waits where an earlier one of another engine touches the same rows and one of both writes, or one of
    its own engine writes what it reads (an engine starts, reads, writes and completes in order, but overlaps its
    instructions). A wait names the last producer that is needed; the k-th wait of a pair of engines meets its k-th
    signal. What is known through other waits is not waited for again.
    """
    history: dict[Memory, list[_Access]] = {memory: [] for memory in Memory}
    engines = [Engine[item.opcode.name] for item in items]
    known = {engine: dict.fromkeys(Engine, -1) for engine in Engine}
    """known[c][p]: the last item of p that is complete when the latest item of c starts."""
    at_start: list[dict[Engine, int]] = []
    wait, signal = [0] * len(items), [0] * len(items)
    for index, item in enumerate(items):
        engine = engines[index]
        needed = dict.fromkeys(Engine, -1)
        for spans, writes in ((item.reads, False), (item.writes, True)):
            for span in spans:
                first = span.buffer.row + span.first
                for access in history[span.buffer.memory]:
                    if access.first < first + span.rows and first < access.end and (writes or access.writes):
                        producer = engines[access.index]
                        if producer != engine or (access.writes and not writes):
                            needed[producer] = max(needed[producer], access.index)
        for producer, last in sorted(needed.items(), key=lambda pair: -pair[1]):
            if last > known[engine][producer]:
                bit = 1 << semaphore(producer, engine)
                wait[index] |= bit
                signal[last] |= bit
                for other, complete in at_start[last].items():
                    known[engine][other] = max(known[engine][other], complete)
                known[engine][producer] = last
        at_start.append(dict(known[engine]))
        _remember(history, item, index)
    return list(zip(wait, signal, strict=True))


def _remember(history: dict[Memory, list[_Access]], item: Item, index: int) -> None:
    """Add an item's accesses; what its writes cover is implied by them from now on."""
    for spans, writes in ((item.reads, False), (item.writes, True)):
        for span in spans:
            first = span.buffer.row + span.first
            end = first + span.rows
            old = history[span.buffer.memory]
            if writes:
                old[:] = [a for a in old if a.index == index or a.first < first or a.end > end]
            old.append(_Access(first, end, index, writes))
