"""VECTOR items: element-wise arithmetic and moving of positions."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..arch import graph as g
from ..arch.accelerator import TABLE_ROW_BYTES
from ..arch.isa import INDEX_BITS, Opcode, VectorOp
from .ir import INDEX_ROW_ENTRIES, Entry, Item, Memory, Place, Span, capacity
from .tensors import Tensors

__all__ = ["append", "gather", "move"]


def append(
    tensors: Tensors, tag: int, x: Place, y: Place, values: dict, reads: tuple[Span, ...] = ()
) -> None:
    """An item from every position of tensor x to the same one of tensor y; `reads` is what it needs besides."""
    a = tensors.accelerator
    values = values | {"positions": x.reach(a), "channels": x.physical}
    values |= {"src": x.at(), "src_stride": x.stride, "src_wide": x.wide}
    values |= {"dst": y.at(), "dst_stride": y.stride, "dst_wide": y.wide}
    used = -(-(-(-x.physical // a.vector) * a.vector * (2 if y.wide else 1)) // a.depth)
    source = x.span(a, 0, -(-x.physical * (2 if x.wide else 1) // a.depth))
    tensors.items.append(
        Item(
            opcode=Opcode.VECTOR,
            tag=tag,
            values=values,
            reads=(source, *reads),
            writes=(y.span(a, 0, used),),
        )
    )


def move(tensors: Tensors, tag: int, x: Place, y: Place, fill: int | None = None) -> None:
    """The same codes, or the code `fill` everywhere."""
    half = 1 << (15 if y.wide else 7)
    values = {"op": VectorOp.ELEMENTWISE, "m": 2, "n": 1, "lo": -half, "hi": half - 1}
    if fill is not None:
        values |= {"m": 0, "constant": fill << 1}
    append(tensors, tag, x, y, values)


def gather(
    tensors: Tensors, tag: int, name: str, x: Place, index: np.ndarray, y: Place, zero_point: int = 0
) -> None:
    """Position p of y's rows is position index[p] of x's rows, or the zero point where index[p] is -1."""
    a = tensors.accelerator
    x.buffer.whole = True
    if x.buffer.rows > a.scratchpad_rows and isinstance(tensors.graph.operators[tag], g.Gather):
        tensors.torn.add(tag)
    elif x.buffer.rows > a.scratchpad_rows:
        tensors.problem(
            name,
            f"scratchpad_rows must be at least {x.buffer.rows}, so that one region holds {x.buffer.name}, not "
            f"{a.scratchpad_rows}. Raise scratchpad_rows",
        )
    if (index < 0).any():
        spare = _spare(tensors, x)
        move(tensors, tag, spare, spare, fill=zero_point)
        index = np.where(index < 0, (spare.offset - x.offset) // x.stride * a.columns, index)
    limit = capacity(a, Memory.INDEX) * INDEX_ROW_ENTRIES // 2 // a.columns * a.columns
    if not limit or index.max() >= 1 << INDEX_BITS:
        tensors.problem(
            name,
            f"a gather needs index_rows of at least {2 * a.columns} and positions below {1 << INDEX_BITS}, not "
            f"{a.index_rows} and {index.max()}",
        )
        return
    size = 2 if x.wide else 1
    height = -(-x.physical * size // a.depth)
    used = -(-(-(-x.physical * size // (2 * a.vector)) * 2 * a.vector) // a.depth)
    for first in range(0, len(index), limit):
        part = index[first : first + limit]
        entries = np.pad(part, (0, -len(part) % INDEX_ROW_ENTRIES)).astype("<u2").view(np.uint8)
        table = tensors.data(Memory.INDEX, f"{name}/index", tag, entries.reshape(-1, TABLE_ROW_BYTES))
        row, tiles = first // a.columns * y.stride, -(-len(part) // a.columns)
        values = {"op": VectorOp.GATHER, "positions": len(part), "channels": x.physical}
        values |= {"src": x.at(), "src_stride": x.stride, "src_wide": x.wide}
        values |= {"dst": y.at(row), "dst_stride": y.stride, "dst_wide": y.wide, "index": Entry(table)}
        reach = int(part.max()) // a.columns * x.stride + height
        tensors.items.append(
            Item(
                opcode=Opcode.VECTOR,
                tag=tag,
                values=values,
                reads=(Span(x.buffer, x.offset, reach), Span(table, 0, table.rows)),
                writes=(Span(y.buffer, y.offset + row, (tiles - 1) * y.stride + used),),
            )
        )


def _spare(tensors: Tensors, x: Place) -> Place:
    """The tile at the end of x's buffer that belongs to no position."""
    assert x.buffer.spare, f"{x.buffer.name} must have a spare tile"
    tile = x.buffer.rows - x.stride + x.offset % x.stride
    return dataclasses.replace(x, offset=tile, positions=tensors.accelerator.columns, window=0)
