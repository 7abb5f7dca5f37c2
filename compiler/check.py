"""The check after encoding: order and ranges of what a section's instruction words access.

Everything is derived again from the fields of the words, row by row, and from the semaphores alone; nothing is taken
from the scheduler. A violation is a bug of the compiler: AssertionError with the instruction's index.
"""

from __future__ import annotations

import numpy as np

from ..arch import isa
from ..arch.accelerator import TABLE_PAGE_ENTRIES, TABLE_ROW_BYTES, Accelerator
from ..arch.isa import (
    Destination,
    Engine,
    FetchMode,
    Instruction,
    LoadTarget,
    Opcode,
    ParamMode,
    Region,
    VectorOp,
)
from ..arch.layout import token_slots
from ..arch.options import refusal
from .ir import INDEX_ROW_ENTRIES, Item, Memory, capacity

__all__ = ["PENDING_MAX", "accesses", "section"]

PENDING_MAX = 255
"""Largest count of a semaphore."""


def section(
    accelerator: Accelerator,
    words: np.ndarray,
    items: list[Item] | None = None,
    weights: np.ndarray | None = None,
    index: np.ndarray | None = None,
) -> None:
    """Check instruction words up to and with END.

    Every pair of accesses to the same row, at least one of them a write, must be ordered by semaphores or by one
    engine's own order; each semaphore must end at 0 and never exceed PENDING_MAX. With `items`, an instruction
    must stay inside the spans of its item. `index` is the content of the index memory, which LOADs from the
    WEIGHTS region `weights` change.
    """
    index = np.zeros(accelerator.index_rows, np.int64) if index is None else index
    instructions = [isa.decode(word) for word in words]
    assert instructions[-1].opcode == Opcode.END, "a section must end with END"
    del instructions[-1]
    for number, instruction in enumerate(instructions):
        reason = refusal(accelerator, instruction)
        assert reason is None, f"instruction {number}: {reason}"
    known = _known(instructions)
    size = {memory: capacity(accelerator, memory) for memory in Memory}
    outside = (
        accesses(accelerator, i, index) for i in instructions if i.opcode in (Opcode.LOAD, Opcode.STORE)
    )
    ends = [rows.max() + 1 for found in outside for memory, rows, _ in found if memory == Memory.OUTSIDE]
    size[Memory.OUTSIDE] = max(ends, default=0)
    writer = {memory: np.full(size[memory], -1) for memory in Memory}
    reader = {(memory, engine): np.full(size[memory], -1) for memory in Memory for engine in Engine}
    engines = np.array([instruction.engine for instruction in instructions], dtype=np.int64)
    for number, instruction in enumerate(instructions):
        touched = accesses(accelerator, instruction, index)
        for memory, rows, writes in touched:
            assert rows.min() >= 0 and rows.max() < size[memory], (
                f"instruction {number}: outside {memory.name}"
            )
            if items is not None:
                _inside(number, items[number], memory, rows, writes)
            before = np.unique(writer[memory][rows])
            _ordered(number, before[before >= 0], engines, known, memory, own=not writes)
            if writes:
                for engine in Engine:
                    before = np.unique(reader[memory, engine][rows])
                    _ordered(number, before[before >= 0], engines, known, memory, own=False)
        for memory, rows, writes in touched:
            if writes:
                writer[memory][rows] = number
            else:
                reader[memory, instruction.engine][rows] = number
        if (
            instruction.opcode == Opcode.LOAD
            and instruction.target == LoadTarget.INDEX
            and weights is not None
        ):
            _load_index(accelerator, instruction, weights, index)


def _ordered(
    index: int, before: np.ndarray, engines: np.ndarray, known: np.ndarray, memory: Memory, own: bool
) -> None:
    """Items `before` must be complete when `index` starts; those of its own engine only if `own`."""
    for earlier in before:
        if own or engines[earlier] != engines[index]:
            assert known[index, engines[earlier]] >= earlier, (
                f"instruction {index} must wait for instruction {earlier} ({memory.name})"
            )


def _inside(index: int, item: Item, memory: Memory, rows: np.ndarray, writes: bool) -> None:
    spans = [s for s in (item.writes if writes else item.reads) if s.buffer.memory == memory]
    allowed = np.zeros(len(rows), bool)
    for span in spans:
        first = span.buffer.row + span.first
        allowed |= (rows >= first) & (rows < first + span.rows)
        inside = span.first >= 0 and span.first + span.rows <= span.buffer.rows
        assert inside, f"instruction {index}: leaves {span.buffer.name}"
    assert allowed.all(), f"instruction {index}: {memory.name} row {rows[~allowed][0]} is not its own"


def _known(instructions: list[Instruction]) -> np.ndarray:
    """known[i, e]: the last instruction of engine e that is complete when i starts, by semaphores alone."""
    known = np.full((len(instructions), len(Engine)), -1)
    tokens: list[list[int]] = [[] for _ in range(isa.SEMAPHORES)]
    waits: list[list[int]] = [[] for _ in range(isa.SEMAPHORES)]
    signals = [0] * isa.SEMAPHORES
    last: dict[Engine, int] = {}
    for index, instruction in enumerate(instructions):
        engine = instruction.engine
        if engine in last:
            known[index] = known[last[engine]]
        last[engine] = index
        for s in range(isa.SEMAPHORES):
            if instruction.wait >> s & 1:
                assert tokens[s], f"instruction {index}: nothing before signals semaphore {s}"
                assert s % 4 == engine, f"instruction {index}: semaphore {s} belongs to another consumer"
                producer = tokens[s].pop(0)
                known[index] = np.maximum(known[index], known[producer])
                known[index, s // 4] = max(known[index, s // 4], producer)
                waits[s].append(index)
        for s in range(isa.SEMAPHORES):
            if instruction.signal >> s & 1:
                assert s // 4 == engine, f"instruction {index}: semaphore {s} belongs to another producer"
                tokens[s].append(index)
                signals[s] += 1
                started = index if s % 4 == engine else known[index, s % 4]
                pending = signals[s] - sum(w <= started for w in waits[s])
                assert pending <= PENDING_MAX, (
                    f"instruction {index}: semaphore {s} could exceed {PENDING_MAX}"
                )
    assert not any(tokens), "semaphores must be 0 at END"
    return known


def _load_index(a: Accelerator, i: Instruction, weights: np.ndarray, index: np.ndarray) -> None:
    """The effect of a LOAD on the index memory."""
    pitch = a.pitch(TABLE_ROW_BYTES)
    raw = weights[i.offset : i.offset + i.rows * pitch].reshape(i.rows, pitch)[:, :TABLE_ROW_BYTES]
    first = i.row * INDEX_ROW_ENTRIES
    index[first : first + i.rows * INDEX_ROW_ENTRIES] = np.ascontiguousarray(raw).view("<u2").ravel()


def accesses(
    accelerator: Accelerator, i: Instruction, index: np.ndarray
) -> list[tuple[Memory, np.ndarray, bool]]:
    """Rows that an instruction reads (False) and writes (True) in each memory; `index` is the index memory's content."""
    if i.opcode in (Opcode.LOAD, Opcode.STORE):
        loads = i.opcode == Opcode.LOAD
        memory = Memory(LoadTarget(i.target)) if loads else Memory.SCRATCHPAD
        found = [(memory, np.arange(i.row, i.row + i.rows), loads)]
        if i.region == Region.SCRATCH:
            pitch = accelerator.pitch(accelerator.scratchpad_row_bytes)
            found.append((Memory.OUTSIDE, i.offset // pitch + np.arange(i.rows), not loads))
        return found
    return _matrix(accelerator, i) if i.opcode == Opcode.MATRIX else _vector(accelerator, i, index)


def _tiles(first: int, stride: int, tiles: int, rows: int) -> np.ndarray:
    return np.unique(first + stride * np.arange(tiles)[:, None] + np.arange(rows))


def _table(i: Instruction) -> np.ndarray:
    first = i.table_page * TABLE_PAGE_ENTRIES // TABLE_ROW_BYTES
    return np.arange(first, first + (1024 if i.table_wide else 256) // TABLE_ROW_BYTES)


def _matrix(a: Accelerator, i: Instruction) -> list[tuple[Memory, np.ndarray, bool]]:
    tiles, blocks = -(-i.positions // a.columns), i.groups * i.blocks
    steps = blocks * i.steps - i.skip
    channels = steps * a.drain << i.plain
    weight_rows = -(-i.chunks // a.depth) if i.private else i.chunks
    if i.mode == FetchMode.LINEAR:
        source = _tiles(i.src, i.src_stride, tiles, i.groups * i.chunks)
    else:
        lines = -(-(i.positions - i.prefix) // i.out_width)
        top = max(0, i.start_y)
        bottom = max(top + 1, min(i.height, i.start_y + (lines - 1) * i.stride_y + i.taps_y))
        join = i.mode == FetchMode.JOIN
        width, rows = (1, -(-i.width // a.depth)) if join else (i.width, i.groups * i.tap_chunks)
        first, last = top * width // a.columns, (bottom * width - 1) // a.columns
        source = _tiles(i.src + first * i.src_stride, i.src_stride, last - first + 1, rows)
    found = [
        (Memory.SCRATCHPAD, source, False),
        (Memory.WEIGHT, _tiles(i.weight, i.weight_stride, blocks, weight_rows), False),
    ]
    if i.param_mode == ParamMode.TOKEN:
        found.append((Memory.ROW_SCALE, np.arange(i.param, i.param + tiles), False))
    else:
        rows = steps if i.param_mode == ParamMode.CHANNEL else 1
        found.append((Memory.PARAM, np.arange(i.param, i.param + rows), False))
    if i.table:
        found.append((Memory.TABLE, _table(i), False))
    if i.residual:
        rows = _tiles(i.residual_row, i.residual_stride, tiles, -(-channels * 2 // a.depth))
        found.append((Memory.SCRATCHPAD, rows, False))
    size = 2 if i.wide else 1
    if i.destination == Destination.SCRATCHPAD:
        found.append(
            (Memory.SCRATCHPAD, _tiles(i.dst, i.dst_stride, tiles, -(-channels * size // a.depth)), True)
        )
    else:
        keys, slots = i.destination == Destination.KEYS, int(token_slots(a, tiles * a.columns)[-1]) + 1
        count = i.dst_part + (tiles if keys else steps)
        rows = _tiles(
            i.dst, i.dst_stride, -(-count // i.dst_block), -(-(channels if keys else slots) // a.depth)
        )
        found.append((Memory.WEIGHT, rows, True))
    if i.maxima:
        found.append((Memory.ROW_MAXIMA, np.arange(i.second_dst, i.second_dst + tiles), True))
    if i.moments:
        found.append((Memory.ROW_MOMENTS, np.arange(i.second_dst, i.second_dst + tiles), True))
    if i.second:
        rows = _tiles(i.second_dst, i.second_stride, tiles, -(-channels // a.depth))
        found.append((Memory.SCRATCHPAD, rows, True))
    return found


def _vector(a: Accelerator, i: Instruction, index: np.ndarray) -> list[tuple[Memory, np.ndarray, bool]]:
    if i.op == VectorOp.GATHER:
        return _gather(a, i, index)
    tiles = -(-i.positions // a.columns)
    computes = i.op in (VectorOp.ELEMENTWISE, VectorOp.MULTIPLY)
    size = 2 if i.src_wide or not computes else 1
    found = [(Memory.SCRATCHPAD, _tiles(i.src, i.src_stride, tiles, -(-i.channels * size // a.depth)), False)]
    written = -(-i.channels // a.vector) * a.vector * (2 if i.dst_wide and computes else 1)
    found.append((Memory.SCRATCHPAD, _tiles(i.dst, i.dst_stride, tiles, -(-written // a.depth)), True))
    if i.op == VectorOp.LAYERNORM:
        found.append((Memory.NORM, np.arange(i.param, i.param + -(-i.channels // a.vector)), False))
        found.append((Memory.RSQRT, np.arange(256), False))
        if i.summed:
            found.append((Memory.ROW_MOMENTS, np.arange(i.index, i.index + tiles), False))
    elif i.op == VectorOp.SOFTMAX:
        found.append((Memory.EXP, np.arange(32), False))
        found.append((Memory.RECIP, np.arange(64), False))
        found.append((Memory.ROW_SCALE, np.arange(i.param, i.param + tiles), True))
        if i.measured:
            found.append((Memory.ROW_MAXIMA, np.arange(i.index, i.index + tiles), False))
    elif i.table:
        found.append((Memory.TABLE, _table(i), False))
    multiply = i.op == VectorOp.MULTIPLY
    if multiply or (i.residual and computes) or (i.bias and i.op == VectorOp.SOFTMAX):
        size = 2 if i.residual_wide or not multiply else 1
        count = 1 if multiply and i.broadcast else tiles
        rows = _tiles(i.residual_row, i.residual_stride, count, -(-i.channels * size // a.depth))
        found.append((Memory.SCRATCHPAD, rows, False))
    return found


def _gather(a: Accelerator, i: Instruction, index: np.ndarray) -> list[tuple[Memory, np.ndarray, bool]]:
    entries = np.arange(i.index, i.index + i.positions)
    assert entries[-1] < len(index), "a GATHER must read inside the index memory"
    size = i.channels * (2 if i.src_wide else 1)
    source = i.src + index[entries] // a.columns * i.src_stride
    rows = np.unique(source[:, None] + np.arange(-(-size // a.depth)))
    assert len(np.unique(rows // a.scratchpad_rows)) == 1, "a GATHER must read one region"
    written = -(-size // (2 * a.vector)) * 2 * a.vector
    target = _tiles(i.dst, i.dst_stride, -(-i.positions // a.columns), -(-written // a.depth))
    return [
        (Memory.SCRATCHPAD, rows, False),
        (Memory.INDEX, np.unique(entries // INDEX_ROW_ENTRIES), False),
        (Memory.SCRATCHPAD, target, True),
    ]
