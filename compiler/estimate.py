"""Cycles that an item keeps its engine, roughly: enough to place LOADs. Exact cycles are the cycle model's."""

from __future__ import annotations

from ..arch.accelerator import Accelerator
from ..arch.isa import Engine, FetchMode, Opcode, VectorOp
from .ir import Item, Memory, row_bytes

__all__ = ["cycles", "engine", "occupied"]

_MATRIX_LATENCY = 37
"""From an element's fetch to its output's write; instructions overlap by it."""
_VECTOR_LATENCY = 21
_SOFTMAX_LATENCY = 40
"""From a step's read to its write, or to the row scales besides `columns` cycles."""
_PASSES = {VectorOp.ELEMENTWISE: 1, VectorOp.LAYERNORM: 2, VectorOp.SOFTMAX: 2, VectorOp.MULTIPLY: 2}
"""How often the vector engine walks through the channels."""
_LATER_TILE = 6
"""Cycles besides `columns` from tile to tile of a LAYERNORM by row moments."""
_GATHER = 4
"""Least cycles for a position that is moved."""


def engine(item: Item) -> Engine:
    """The engine that executes an item."""
    return Engine[item.opcode.name]


def cycles(accelerator: Accelerator, item: Item) -> int:
    """Cycles from an item's start to its end where nothing holds it up, drain steps that its last block skips included: orders
    made without them take more cycles (DeiT-Base mixed 2,616,991)."""
    a, get = accelerator, item.values.get
    if item.opcode in (Opcode.LOAD, Opcode.STORE):
        memory = Memory(get("target")) if item.opcode == Opcode.LOAD else Memory.SCRATCHPAD
        return get("rows") * a.beats(row_bytes(a, memory))
    tiles = -(-get("positions") // a.columns)
    if item.opcode == Opcode.VECTOR and get("op") == VectorOp.GATHER:
        size = get("channels") * (2 if get("src_wide") else 1)
        return _VECTOR_LATENCY + get("positions") * max(_GATHER, -(-size // (2 * a.vector)))
    if item.opcode == Opcode.VECTOR:
        steps = -(-get("channels") // a.vector)
        latency = _SOFTMAX_LATENCY + a.columns if get("op") == VectorOp.SOFTMAX else _VECTOR_LATENCY
        if get("measured"):
            return latency + tiles * (-(-get("channels") // a.depth) * a.depth // a.vector)
        if get("summed"):
            return latency + a.columns + tiles * max(steps, a.columns + _LATER_TILE)
        return latency + tiles * steps * _PASSES[VectorOp(get("op"))]
    chunks, drain = get("chunks"), get("steps") * (2 if get("second") else 1)
    fetch, across = chunks, get("stride_x")
    if get("mode") == FetchMode.JOIN:
        fetch *= a.columns
    elif get("mode") == FetchMode.CONV and across > 1:
        fetch *= min(a.columns, across + 1)
    return _MATRIX_LATENCY + tiles * get("groups") * max(
        get("blocks") * max(chunks << bool(get("digits")), drain), fetch
    )


def occupied(item: Item, cycles: int) -> int:
    """Cycles of them after which the engine takes its next item: the matrix engine overlaps its instructions."""
    return cycles - _MATRIX_LATENCY if item.opcode == Opcode.MATRIX else cycles
