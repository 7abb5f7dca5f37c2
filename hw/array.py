"""The multiplier array: rows of lanes, and the shadow registers from which the drain takes their sums."""

from __future__ import annotations

from amaranth import hdl
from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

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
    """`chunk`, `operand` and `weights` are of one cycle; inputs are registered here (the broadcast).

    All lanes take chunk number `chunk.bank` of `operand` (`columns` words each). With `chunk.private` lane l takes
    number l // depth, and multiplies byte l % depth by its weight number `chunk.tap`.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        sums = data.ArrayLayout(signed(ACCUMULATOR_BITS), accelerator.columns)
        super().__init__(
            {
                "chunk": In(ChunkLayout),
                "operand": In(accelerator.depth * 8).array(accelerator.private * accelerator.columns),
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
        depth = self.accelerator.depth
        operands, prepared = self.operands(m), {}
        chunk = delayed(m, self.chunk, 1)
        valid = delayed(m, self.chunk.valid, 1, reset_less=False)
        move = delayed(m, valid & chunk.last, lanes.LATENCY, reset_less=False)

        for lane, row in self.rows().items():
            place = lane // depth if lane // depth < len(operands) else 0
            if (place, row.arithmetic) not in prepared:
                prepared[place, row.arithmetic] = row.arithmetic.operands.prepared(m, operands[place])
            m.submodules[f"row_{lane}"] = row
            weights = Cat(delayed(m, self.weight(lane + i), 1) for i in range(row.lanes))
            m.d.comb += [
                row.operand.eq(prepared[place, row.arithmetic]),
                row.weights.eq(weights),
                row.valid.eq(valid),
                row.first.eq(chunk.first),
            ]
            if row.arithmetic.maximum:
                m.d.comb += row.maximum.eq(chunk.maximum)
            for i in range(row.lanes):
                shadow = Signal.like(self.sums[lane + i], name=f"shadow_{lane + i}", reset_less=True)
                with m.If(move):
                    m.d.sync += shadow.eq(row.sums[i])
                m.d.comb += self.sums[lane + i].eq(shadow)
        return m

    def operands(self, m: Module) -> list[list[list[Value]]]:
        """What the lanes of each private chunk multiply, [column][i]; other lanes take the first."""
        columns, depth, private = self.accelerator.columns, self.accelerator.depth, self.accelerator.private
        operands = [[] for _ in range(private)]
        for column in range(columns):
            own = [self.operand[i * columns + column] for i in range(private)]
            common = hdl.Array(own)[self.chunk.bank] if private > 1 else own[0]
            for operand, word in zip(operands, own, strict=True):
                chosen = Signal.like(word)
                m.d.comb += chosen.eq(Mux(self.chunk.private, word, common) if private > 1 else word)
                codes = [chosen[i * 8 : i * 8 + 8] for i in range(depth)]
                operand.append([Cat(code, code[7] & ~self.chunk.unsigned).as_signed() for code in codes])
        return operands

    def weight(self, lane: int):
        """What the lane multiplies its operand by."""
        word, depth = self.weights[lane], self.accelerator.depth
        if self.accelerator.private == 1 or lane >= self.accelerator.private * depth:
            return word
        place, tap = lane % depth, self.chunk.tap[: exact_log2(depth)]
        alone = Cat(C(0, 8 * place), word.word_select(tap, 8), C(0, 8 * (depth - 1 - place)))
        return Mux(self.chunk.private, alone, word)

    def rows(self) -> dict[int, Shared]:
        """The row modules by their first lane."""
        a, rows = self.accelerator, {}
        start = 0
        for scheme, count in a.lanes.by_scheme.items():
            lane = start
            while lane < start + count:
                other = lane >= start + count - a.lanes.others.get(scheme, 0)
                rows[lane] = Shared(lanes.Row, scheme, a.columns, a.depth, other)
                lane += rows[lane].lanes
            start += count
        return rows
