"""The multiplier array: rows of lanes, and the shadow registers from which the drain takes their sums."""

from __future__ import annotations

from amaranth import hdl
from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..arch.accelerator import Accelerator
from ..arch.numerics import ACCUMULATOR_BITS
from ..arch.schemes import Scheme, storage_bits
from . import lanes
from .compute import ChunkLayout
from .delay import delayed
from .shared import Shared

__all__ = ["Array", "move_cycles"]


def move_cycles(accelerator: Accelerator) -> int:
    """From a block's last chunk at the ports to the last cycle of the shadow registers' old value."""
    return accelerator.broadcast_stages + lanes.LATENCY + accelerator.tree_stages - 1


class Array(wiring.Component):
    """`chunk` and `operand` are of one cycle and go through `broadcast_stages` registers; `weights` come as many cycles less one
    later, and go through one.

    All lanes take chunk number `chunk.bank` of `operand` (`columns` words each). With `chunk.private` lane l takes
    number l // depth, and multiplies byte l % depth by its weight number `chunk.tap`; and with two taps the same byte of
    the chunk half of them away, by its next weight. `chunk.high`: the first tap has the upper half.
    With `chunk.digits` Fixed-4 lanes multiply one digit of each byte, and shift their sums before the first low one; other lanes
    multiply the bytes twice, and keep the second sum.
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
        share = self.accelerator.depth // self.accelerator.private_taps
        stages = self.accelerator.broadcast_stages
        early = delayed(m, self.chunk, stages - 1)
        operands, prepared = self.operands(m), {}
        digits = self.digits(m, early, operands[0]) if self.accelerator.lanes.fixed4_digits else None
        chunk = delayed(m, early, 1)
        valid = delayed(m, self.chunk.valid, stages, reset_less=False)
        move = delayed(m, valid & chunk.last, move_cycles(self.accelerator) - stages, reset_less=False)

        for lane, row in self.rows().items():
            place = lane // share if lane // share < len(operands) else 0
            if (place, row.arithmetic) not in prepared:
                taken = digits if row.digits else operands[place]
                prepared[place, row.arithmetic] = row.arithmetic.operands.prepared(m, taken)
            m.submodules[f"row_{lane}"] = row
            weights = Cat(delayed(m, self.weight(early, lane + i), 1) for i in range(row.lanes))
            m.d.comb += [
                row.operand.eq(prepared[place, row.arithmetic]),
                row.weights.eq(weights),
                row.valid.eq(valid),
                row.first.eq(chunk.first if row.digits or digits is None else chunk.first | chunk.shift),
            ]
            if row.digits:
                m.d.comb += row.shift.eq(chunk.shift)
            if row.arithmetic.maximum:
                m.d.comb += row.maximum.eq(chunk.maximum)
            for i in range(row.lanes):
                shadow = Signal.like(self.sums[lane + i], name=f"shadow_{lane + i}", reset_less=True)
                with m.If(move):
                    m.d.sync += shadow.eq(row.sums[i])
                m.d.comb += self.sums[lane + i].eq(shadow)
        return m

    def operands(self, m: Module) -> list[list[list[Value]]]:
        """What each private chunk's worth of lanes multiplies, [column][i], broadcast_stages - 1 cycles after the ports; other lanes
        take the first."""
        columns, depth, private = self.accelerator.columns, self.accelerator.depth, self.accelerator.private
        stages = self.accelerator.broadcast_stages - 1
        operands = [[] for _ in range(private)]
        for column in range(columns):
            own = [self.operand[i * columns + column] for i in range(private)]
            common = hdl.Array(own)[self.chunk.bank] if private > 1 else own[0]
            for operand, word in zip(operands, self.paired(own), strict=True):
                chosen = Signal.like(word)
                m.d.comb += chosen.eq(Mux(self.chunk.private, word, common) if private > 1 else word)
                codes = [chosen[i * 8 : i * 8 + 8] for i in range(depth)]
                signs = [code[7] & ~self.chunk.unsigned for code in codes]
                operand.append(
                    [
                        delayed(m, Cat(code, sign), stages).as_signed()
                        for code, sign in zip(codes, signs, strict=True)
                    ]
                )
        return operands

    def digits(self, m: Module, chunk: data.View, operand: list[list[Value]]) -> list[list[Value]]:
        """What Fixed-4 lanes multiply, [column][i]: with `chunk.digits` the high digit of a byte, with its sign, or the low one."""
        high = chunk.digits & ~chunk.low
        chosen = []
        for c, column in enumerate(operand):
            digits = []
            for i, code in enumerate(column):
                digit = Signal(signed(9), name=f"digit_{c}_{i}")
                above = Mux(chunk.digits, (high & code[8]).replicate(5), code[4:])
                m.d.comb += digit.eq(Cat(Mux(high, code[4:8], code[:4]), above))
                digits.append(digit)
            chosen.append(digits)
        return chosen

    def weight(self, chunk: data.View, lane: int) -> Value:
        """What the lane multiplies its operand by."""
        a, word = self.accelerator, self.weights[lane]
        if a.private == 1 or lane >= a.private_chunks * a.depth:
            return word
        codes = [C(0, 8)] * a.depth
        if a.private_taps == 1:
            codes[lane % a.depth] = word.word_select(chunk.tap[: exact_log2(a.depth)], 8)
        else:
            pair = word.word_select(chunk.tap[1 : exact_log2(a.depth)], 16)
            codes[lane % a.depth], codes[(lane + a.depth // 2) % a.depth] = (
                pair[:8],
                Mux(chunk.single, 0, pair[8:]),
            )
        return Mux(chunk.private, Cat(codes), word)

    def paired(self, chunks: list) -> list:
        """The private chunks, or with two taps halves of the first tap's and of the second's together: byte l % depth
        of the first for lane l, and of the second half the bytes away."""
        if self.accelerator.private_taps == 1:
            return chunks
        half, bits, made = len(chunks) // 2, self.accelerator.depth * 4, []
        for low, high in zip(chunks[:half], chunks[half:], strict=True):
            first, second = Mux(self.chunk.high, high, low), Mux(self.chunk.high, low, high)
            made += [Cat(first[:bits], second[:bits]), Cat(second[bits:], first[bits:])]
        return made

    def rows(self) -> dict[int, Shared]:
        """The row modules by their first lane."""
        a, rows = self.accelerator, {}
        lane = 0
        for scheme, count in a.lanes.by_scheme.items():
            others = a.lanes.others.get(scheme, {})
            for other, part in {"": count - sum(others.values()), **others}.items():
                bits, digits = lanes.OPERAND_BITS, False
                if scheme == Scheme.FIXED4:
                    bits, digits = bits if other else a.lanes.fixed4_operand_bits, a.lanes.fixed4_digits
                end = lane + part
                while lane < end:
                    rows[lane] = Shared(
                        lanes.Row, scheme, a.columns, a.depth, other, bits, digits, a.tree_stages
                    )
                    lane += rows[lane].lanes
        return rows
