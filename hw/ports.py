"""Interfaces between the blocks; docs/machine.md states their protocol."""

from __future__ import annotations

from amaranth.hdl import signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..arch import isa
from ..arch.accelerator import NORM_BYTES, PARAM_BYTES, TABLE_ROW_BYTES, Accelerator
from ..arch.numerics import LOGIT_BITS, SQUARES_BITS, SUM_BITS
from .decode import instruction_layout

__all__ = [
    "EngineSignature",
    "IndexRead",
    "IndexWrite",
    "LoadPort",
    "ReadPort",
    "RegisterWrite",
    "RowMaximaPort",
    "RowMomentsPort",
    "RowScalePort",
    "WritePort",
    "load_bytes",
    "row_maxima_layout",
    "row_scale_layout",
    "sums_layout",
]

ROW_BITS = 16


class EngineSignature(wiring.Signature):
    """What control sees of an engine: instructions in, completions out (members face the engine). `stalled` tells of the
    cycle before; `halt` is known to the engine in the next one."""

    def __init__(self, opcode: isa.Opcode):
        super().__init__(
            {
                "i": In(stream.Signature(instruction_layout(opcode))),
                "done": Out(1),
                "done_signal": Out(16),
                "done_tag": Out(10),
                "busy": Out(1),
                "stalled": Out(1),
                "halt": In(1),
            }
        )


class ReadPort(wiring.Signature):
    """Scratchpad read port, facing the reader: data belongs to the grant two cycles before.

    With `rows` > 1 (a power of two) row number i of `data` is the scratchpad's row | i.
    """

    def __init__(self, accelerator: Accelerator, rows: int = 1):
        super().__init__(
            {
                "valid": Out(1),
                "ready": In(1),
                "row": Out(ROW_BITS),
                "data": In(rows * accelerator.scratchpad_row_bytes * 8),
            }
        )


class WritePort(wiring.Signature):
    """Scratchpad write port, facing the writer; `mask` has a bit per byte."""

    def __init__(self, accelerator: Accelerator):
        super().__init__(
            {
                "valid": Out(1),
                "ready": In(1),
                "row": Out(ROW_BITS),
                "data": Out(accelerator.scratchpad_row_bytes * 8),
                "mask": Out(accelerator.scratchpad_row_bytes),
            }
        )


def load_bytes(accelerator: Accelerator, target: isa.LoadTarget) -> int:
    """Bytes of one row of a LOAD's target memory."""
    match target:
        case isa.LoadTarget.SCRATCHPAD:
            return accelerator.scratchpad_row_bytes
        case isa.LoadTarget.WEIGHT:
            return accelerator.weight_row_bytes
        case isa.LoadTarget.PARAM:
            return PARAM_BYTES * accelerator.drain
        case isa.LoadTarget.NORM:
            return NORM_BYTES * accelerator.vector
        case _:
            return TABLE_ROW_BYTES


class LoadPort(wiring.Signature):
    """Rows from the load engine, facing the load engine; `data` is as wide as the widest row."""

    def __init__(self, accelerator: Accelerator):
        width = max(load_bytes(accelerator, target) for target in isa.LoadTarget) * 8
        super().__init__(
            {
                "valid": Out(1),
                "ready": In(1),
                "target": Out(isa.LoadTarget),
                "row": Out(ROW_BITS),
                "data": Out(width),
            }
        )


def row_scale_layout(accelerator: Accelerator) -> data.ArrayLayout:
    """One row of the row-scale memory: m and n of every column."""
    return data.ArrayLayout(data.StructLayout({"m": 16, "n": 6}), accelerator.columns)


class RowScalePort(wiring.Signature):
    """Row scales from the vector engine, facing it; always accepted."""

    def __init__(self, accelerator: Accelerator):
        super().__init__(
            {"valid": Out(1), "row": Out(ROW_BITS), "scales": Out(row_scale_layout(accelerator))}
        )


def row_maxima_layout(accelerator: Accelerator) -> data.ArrayLayout:
    """One row of the memory of row maxima: a logit of every column."""
    return data.ArrayLayout(signed(LOGIT_BITS), accelerator.columns)


class RowMaximaPort(wiring.Signature):
    """The largest logits of a tile from the drain, facing it; always accepted."""

    def __init__(self, accelerator: Accelerator):
        super().__init__(
            {"valid": Out(1), "row": Out(ROW_BITS), "maxima": Out(row_maxima_layout(accelerator))}
        )


def sums_layout() -> data.StructLayout:
    """S = sum of x and Q = sum of x * x over the channels of a column."""
    return data.StructLayout({"sum": signed(SUM_BITS), "squares": SQUARES_BITS})


class RowMomentsPort(wiring.Signature):
    """The sums of a column in a tile from the drain, facing it; always accepted. `entry` is the row of the memory of row
    moments times the power of two that the columns fill, plus the column."""

    def __init__(self, accelerator: Accelerator):
        bits = ROW_BITS + ceil_log2(accelerator.columns)
        super().__init__({"valid": Out(1), "entry": Out(bits), "moments": Out(sums_layout())})


class IndexRead(wiring.Signature):
    """A reader of the index memory, facing it: `value` is the entry that `entry` named in the cycle before."""

    def __init__(self):
        super().__init__({"entry": Out(16), "value": In(16)})


class IndexWrite(wiring.Signature):
    """Entries of the index memory from the vector engine, facing it; always accepted."""

    def __init__(self):
        super().__init__({"valid": Out(1), "entry": Out(16), "value": Out(16)})


class RegisterWrite(wiring.Signature):
    """Registers from the vector engine, facing it; always accepted."""

    def __init__(self):
        super().__init__({"valid": Out(1), "register": Out(4), "value": Out(isa.REGISTER_BITS)})
