"""The multiplier array: rows of lanes, and the shadow registers from which the drain takes their sums."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..arch.accelerator import Accelerator
from ..arch.numerics import ACCUMULATOR_BITS
from ..arch.schemes import storage_bits
from . import lanes
from .compute import ChunkLayout
from .delay import delayed
from .shared import Shared

__all__ = ["MOVE_CYCLES", "Array"]

MOVE_CYCLES = 1 + lanes.LATENCY
"""Cycles from a block's last chunk at the ports to the last cycle of the shadow registers' old value."""


class Array(wiring.Component):
    """`chunk`, `operand` and `weights` are of one cycle; inputs are registered here (the broadcast)."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        sums = data.ArrayLayout(signed(ACCUMULATOR_BITS), accelerator.columns)
        super().__init__(
            {
                "chunk": In(ChunkLayout),
                "operand": In(accelerator.depth * 8).array(accelerator.columns),
                **{
                    f"weights_{lane}": In(storage_bits(kind) * accelerator.depth)
                    for lane, kind in enumerate(accelerator.lanes.kinds)
                },
                "sums": Out(sums).array(accelerator.lanes.total),
            }
        )

    @property
    def weights(self) -> list[Signal]:
        """What each lane multiplies by."""
        return [getattr(self, f"weights_{lane}") for lane in range(self.accelerator.lanes.total)]

    def elaborate(self, platform):
        m = Module()
        columns, depth = self.accelerator.columns, self.accelerator.depth
        operand = Signal(data.ArrayLayout(data.ArrayLayout(signed(9), depth), columns), reset_less=True)
        for column, word in enumerate(self.operand):
            for i in range(depth):
                byte = word[i * 8 : i * 8 + 8]
                m.d.sync += operand[column][i].eq(Cat(byte, byte[7] & ~self.chunk.unsigned).as_signed())
        chunk = delayed(m, self.chunk, 1)
        valid = delayed(m, self.chunk.valid, 1, reset_less=False)
        move = delayed(m, valid & chunk.last, lanes.LATENCY, reset_less=False)

        lane = 0
        while lane < self.accelerator.lanes.total:
            row = Shared(lanes.Row, self.accelerator.lanes.kinds[lane], columns, depth)
            m.submodules[f"row_{lane}"] = row
            weights = Cat(delayed(m, self.weights[lane + i], 1) for i in range(row.lanes))
            m.d.comb += [
                row.operand.eq(operand),
                row.weights.eq(weights),
                row.valid.eq(valid),
                row.first.eq(chunk.first),
            ]
            if lanes.KINDS[row.kind].maximum:
                m.d.comb += row.maximum.eq(chunk.maximum)
            for i in range(row.lanes):
                shadow = Signal.like(self.sums[lane + i], name=f"shadow_{lane + i}", reset_less=True)
                with m.If(move):
                    m.d.sync += shadow.eq(row.sums[i])
                m.d.comb += self.sums[lane + i].eq(shadow)
            lane += row.lanes
        return m
