"""What the operations make of their instruction's fields, so that the rest of the engine has few cases."""

from __future__ import annotations

from amaranth.hdl import Mux, Value
from amaranth.lib import data

from ...arch.isa import VectorOp

__all__ = ["prepared"]


def prepared(raw: data.View) -> dict[str, Value]:
    """Fields that replace those of an instruction.

    COMPACT and GATHER pass codes unchanged through the requantizer; COMPACT has one channel, and GATHER's codes are
    16 bits, two channels of 8 bits each. SOFTMAX's E are not clamped. `residual`: every step has a second operand, which `residual_wide` makes
    16 bits. A broadcast operand has one tile.
    """
    is_op = {op: raw.op == op for op in VectorOp}
    computes = is_op[VectorOp.ELEMENTWISE] | is_op[VectorOp.MULTIPLY]
    multiply, gather = is_op[VectorOp.MULTIPLY], is_op[VectorOp.GATHER]
    compact, softmax = is_op[VectorOp.COMPACT], is_op[VectorOp.SOFTMAX]
    unchanged = compact | gather
    halves = (raw.channels + 1) >> 1
    return {
        "channels": Mux(compact, 1, Mux(gather & ~raw.src_wide, halves, raw.channels)),
        "src_wide": raw.src_wide | is_op[VectorOp.LAYERNORM] | softmax | gather,
        "dst_wide": (raw.dst_wide & computes) | gather,
        "m": Mux(unchanged, 1, raw.m),
        "n": Mux(unchanged, 0, raw.n),
        "constant": Mux(unchanged, 0, raw.constant),
        "lo": Mux(gather | softmax, -32768, raw.lo),
        "hi": Mux(gather | softmax, 32767, raw.hi),
        "table": raw.table & computes,
        "residual": (raw.residual & is_op[VectorOp.ELEMENTWISE]) | multiply | (raw.bias & softmax),
        "residual_wide": raw.residual_wide | ~multiply,
        "residual_stride": Mux(multiply & raw.broadcast, 0, raw.residual_stride),
        "bias": raw.bias & softmax,
        "broadcast": raw.broadcast & multiply,
    }
