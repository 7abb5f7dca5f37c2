"""Cycles that an item keeps its engine, roughly: enough to place LOADs. Exact cycles are the cycle model's."""

from __future__ import annotations

from ..arch.accelerator import Accelerator
from ..arch.isa import Engine, FetchMode, Opcode, VectorOp
from .ir import Item, Memory, row_bytes

__all__ = ["cycles", "engine"]

_STARTUP = 24
"""From an instruction's start to its first result."""
_PASSES = {VectorOp.ELEMENTWISE: 1, VectorOp.LAYERNORM: 2, VectorOp.SOFTMAX: 2, VectorOp.MULTIPLY: 2}
"""How often the vector engine walks through the channels."""
_GATHER = 4
"""Least cycles for a position that is moved."""


def engine(item: Item) -> Engine:
    """The engine that executes an item."""
    return Engine[item.opcode.name]


def cycles(accelerator: Accelerator, item: Item) -> int:
    """Cycles from an item's start to its end where nothing holds it up."""
    a, get = accelerator, item.values.get
    if item.opcode in (Opcode.LOAD, Opcode.STORE):
        memory = Memory(get("target")) if item.opcode == Opcode.LOAD else Memory.SCRATCHPAD
        return get("rows") * a.beats(row_bytes(a, memory))
    tiles = -(-get("positions") // a.columns)
    if item.opcode == Opcode.VECTOR and get("op") == VectorOp.GATHER:
        size = get("channels") * (2 if get("src_wide") else 1)
        return _STARTUP + get("positions") * max(_GATHER, -(-size // (2 * a.vector)))
    if item.opcode == Opcode.VECTOR:
        steps = -(-get("channels") // a.vector)
        return _STARTUP + tiles * steps * _PASSES[VectorOp(get("op"))]
    chunks, drain = get("chunks"), get("steps") * (2 if get("second") else 1)
    fetch = chunks if get("mode") == FetchMode.LINEAR else chunks * a.columns
    return _STARTUP + tiles * get("groups") * max(get("blocks") * max(chunks, drain), fetch)
