"""Who meets whom at the ports of the scratchpad's regions, by the estimated times of the items."""

from __future__ import annotations

import dataclasses

from ..arch.accelerator import Accelerator
from ..arch.isa import Engine, FetchMode, Opcode, VectorOp
from . import estimate
from .ir import Buffer, Item, Memory, Span
from .order import dependencies

__all__ = ["Meeting", "meetings"]

_TWO_PASSES = (VectorOp.LAYERNORM, VectorOp.SOFTMAX)
_QUEUED = 0.05
"""Part of the writes that wait although the queue of the vector engine levels them out."""


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Cycles that would be lost if rows of a buffer were in the same region as rows of another."""

    mine: tuple[int, int]
    """First row and rows, of the buffer."""
    other: Buffer
    its: tuple[int, int]
    cycles: float


@dataclasses.dataclass(frozen=True)
class _Use:
    """How an item uses the ports: rows per cycle of what it reads and writes."""

    begin: int
    end: int
    reads: list[tuple[Span, float]]
    writes: list[tuple[Span, float]]


def meetings(accelerator: Accelerator, items: list[Item]) -> dict[Buffer, list[Meeting]]:
    """Of each buffer of the scratchpad. Two readers at once lose a cycle each time that both want a row, the matrix engine's
    own residual and operands where these take all cycles; writers lose what both write beyond a row per cycle."""
    lost: dict[tuple, float] = {}
    uses: dict[Engine, list[_Use]] = {engine: [] for engine in Engine}
    free, ends = dict.fromkeys(Engine, 0), []
    before, _ = dependencies(items)
    for item, earlier in zip(items, before, strict=True):
        engine, cycles = estimate.engine(item), estimate.cycles(accelerator, item)
        begin = max(free[engine], max((ends[index] for index in earlier), default=0))
        free[engine] = begin + estimate.occupied(item, cycles)
        ends.append(begin + cycles)
        if engine in (Engine.MATRIX, Engine.VECTOR):
            uses[engine].append(_use(accelerator, item, begin, free[engine]))

    def add(x: Span, y: Span, cycles: float) -> None:
        if x.buffer is not y.buffer and cycles > 0:
            key = x.buffer, x.first, x.rows, y.buffer, y.first, y.rows
            lost[key] = lost.get(key, 0.0) + cycles

    for mine in uses[Engine.MATRIX]:
        for i, (x, p) in enumerate(mine.reads):
            for y, q in mine.reads[:i]:
                add(x, y, (mine.end - mine.begin) * (p + q - 1))
    first = 0
    for its in uses[Engine.VECTOR]:
        while first < len(uses[Engine.MATRIX]) and uses[Engine.MATRIX][first].end <= its.begin:
            first += 1
        for mine in uses[Engine.MATRIX][first:]:
            if mine.begin >= its.end:
                break
            both = min(mine.end, its.end) - max(mine.begin, its.begin)
            for x, p in mine.reads:
                for y, q in its.reads:
                    add(x, y, both * p * q)
            for x, p in mine.writes:
                for y, q in its.writes:
                    add(x, y, both * max(p + q - 1, _QUEUED * p * q))
    found: dict[Buffer, list[Meeting]] = {}
    for (x, x_first, x_rows, y, y_first, y_rows), cycles in lost.items():
        found.setdefault(x, []).append(Meeting((x_first, x_rows), y, (y_first, y_rows), cycles))
        found.setdefault(y, []).append(Meeting((y_first, y_rows), x, (x_first, x_rows), cycles))
    return found


def _use(a: Accelerator, item: Item, begin: int, end: int) -> _Use:
    values, cycles = item.values, max(1, end - begin)
    reads = [span for span in item.reads if span.buffer.memory == Memory.SCRATCHPAD]
    writes = [span for span in item.writes if span.buffer.memory == Memory.SCRATCHPAD]
    if item.opcode == Opcode.VECTOR:
        twice = values["op"] in _TWO_PASSES and not values.get("summed")
        written = 0.5 if twice else 1 / max(1, len(reads))
        return _Use(begin, end, [(s, 1 / len(reads)) for s in reads], [(s, written) for s in writes])
    tiles = -(-values["positions"] // a.columns) * values["groups"]
    drained = min(1.0, tiles * values["blocks"] * values["steps"] / cycles)
    fetched = values["chunks"] * (a.columns if values["mode"] == FetchMode.JOIN else 1)
    fetched = min(1.0, tiles * fetched / cycles)
    source = values["src"].buffer
    return _Use(
        begin,
        end,
        [(s, fetched if s.buffer is source else drained) for s in reads],
        [(s, drained) for s in writes],
    )
