"""Drain: from the array's sums to outputs in the scratchpad or the weight memory.

A step takes `drain` lanes of every column. Its pipeline never stands; signals carry their cycle as a prefix:
p0 step counters and addresses, p2 parameters and sums, p7 requantized, p11 clamped, p14 write, p15 second write,
p16 done.
"""

from __future__ import annotations

from amaranth.hdl import Array, C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..arch import isa
from ..arch.accelerator import PARAM_BYTES, TABLE_PAGE_ENTRIES, TABLE_ROW_BYTES, Accelerator
from ..arch.numerics import ACCUMULATOR_BITS
from .compute import BlockLayout
from .decode import instruction_layout
from .delay import delayed
from .lanes.sums import groups as pairs_of
from .maxima import Maxima
from .moments import RowMoments
from .ports import (
    ROW_BITS,
    LoadPort,
    ReadPort,
    RowMaximaPort,
    RowMomentsPort,
    RowScalePort,
    WritePort,
    row_scale_layout,
)
from .requantize import saturate, shifted
from .shared import Shared
from .weights import PART_BITS, DrainWrite, word_parts

__all__ = ["SUMS_CYCLE", "Drain"]

SUMS_CYCLE = 2
"""Cycle of a step in which `sums` is read: the first step of a block has p0 a cycle after `block`."""

RecordLayout = data.StructLayout({"m": 16, "n": 6, "_spare": 2, "entry": 8, "constant": signed(48)})
assert RecordLayout.size == PARAM_BYTES * 8


def clamped(value, lo, hi):
    """min(max(value, lo), hi)."""
    return Mux(value > hi, hi, Mux(value < lo, lo, value))


def chosen(values, index):
    """values[index], by multiplexers of two: of sixteen cases Yosys would make a shift of four times their size. Any of
    them for an index beyond."""
    values, bit = [Value.cast(value) for value in values], 0
    while len(values) > 1:
        values = [Mux(index[bit], pair[-1], pair[0]) for pair in pairs_of(values, 2)]
        bit += 1
    return values[0]


class Output(wiring.Component):
    """Arithmetic of one output channel in one column, with `table` a unary table, and with `squares` the output and its square,
    where the instruction says so (`p11_square`), in place of a second output. Inputs and outputs carry their cycle."""

    def __init__(self, table: bool = True, squares: bool = False):
        self.table, self.squares = table, squares
        super().__init__(
            {
                "p2_sum": In(signed(ACCUMULATOR_BITS)),
                "p2_m": In(16),
                "p4_constant": In(signed(48)),
                "p5_n": In(6),
                "p5_residual": In(signed(16)),
                "p5_residual_m": In(16),
                "p6_residual_round": In(48),
                "p7_residual_n": In(6),
                "p7_wide": In(1),
                "p8_add": In(1),
                "p8_index": Out(10),
                "p9_row": In(TABLE_ROW_BYTES * 8),
                "p10_table": In(1),
                "p10_lo": In(signed(16)),
                "p10_hi": In(signed(16)),
                "p11_m": In(16),
                "p12_constant": In(signed(40)),
                "p13_n": In(6),
                "p13_lo": In(signed(8)),
                "p13_hi": In(signed(8)),
                "p13": Out(signed(16)),
                "p14_second": Out(signed(8)),
                **({"p11_square": In(1), "p12": Out(signed(16)), "p12_square": Out(31)} if squares else {}),
            }
        )

    def elaborate(self, platform):
        m = Module()

        def register(value):
            return delayed(m, value, 1)

        p4_product = register(register(self.p2_sum) * register(self.p2_m))
        p5_total = register(p4_product + self.p4_constant)
        p7 = delayed(m, shifted(p5_total, self.p5_n, 16), 2)
        if self.table:
            index = Mux(self.p7_wide, saturate(p7, 10) ^ 0x200, (saturate(p7, 8) ^ 0x80)[:8])
            m.d.comb += self.p8_index.eq(register(index))

        p6_scaled = register(self.p5_residual * self.p5_residual_m)
        p7_scaled = register(p6_scaled + self.p6_residual_round)
        p8_scaled = register(shifted(p7_scaled, self.p7_residual_n, 17))
        p8 = register(p7)
        p10 = delayed(m, Mux(self.p8_add, saturate(p8 + p8_scaled, 16), p8), 2)
        entries = Array(self.p9_row.word_select(i, 8).as_signed() for i in range(TABLE_ROW_BYTES))
        p10_entry = register(entries[register(self.p8_index[:3])])
        p10_value = Mux(self.p10_table, p10_entry, p10) if self.table else p10
        p11 = register(clamped(p10_value, self.p10_lo, self.p10_hi))
        m.d.comb += self.p13.eq(delayed(m, p11, 2))

        p12_product = register(p11 * (Mux(self.p11_square, p11, self.p11_m) if self.squares else self.p11_m))
        if self.squares:
            m.d.comb += [self.p12.eq(register(p11)), self.p12_square.eq(p12_product)]
        p13_second = shifted(register(p12_product + self.p12_constant), self.p13_n, 8)
        m.d.comb += self.p14_second.eq(register(clamped(p13_second, self.p13_lo, self.p13_hi)))
        return m


class PlainOutput(wiring.Component):
    """`Output` without residual, table and second output."""

    def __init__(self):
        super().__init__(
            {
                "p2_sum": In(signed(ACCUMULATOR_BITS)),
                "p2_m": In(16),
                "p4_constant": In(signed(48)),
                "p5_n": In(6),
                "p10_lo": In(signed(16)),
                "p10_hi": In(signed(16)),
                "p13": Out(signed(16)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        p4_product = delayed(m, delayed(m, self.p2_sum, 1) * delayed(m, self.p2_m, 1), 1)
        p5_total = delayed(m, p4_product + self.p4_constant, 1)
        p10 = delayed(m, shifted(p5_total, self.p5_n, 16), 5)
        m.d.comb += self.p13.eq(delayed(m, clamped(p10, self.p10_lo, self.p10_hi), 3))
        return m


class Steps(wiring.Component):
    """Step counters: a step in cycle p0 with `valid`; the first one of a block is in the cycle after `block`."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        super().__init__(
            {
                "block": In(BlockLayout),
                "slots": In(instruction_layout(isa.Opcode.MATRIX)).array(2),
                "valid": Out(1),
                "slot": Out(1),
                "last": Out(1),
                "tile_last": Out(1),
                "step": Out(8),
                "output": Out(ROW_BITS),
                "tile": Out(18),
                # KEYS, VALUES: the block of lanes, and the place in it.
                "lane_block": Out(ROW_BITS),
                "lane_part": Out(PART_BITS),
                # VALUES: the word of tokens, and the tile in it.
                "word": Out(18),
                "part": Out(range(word_parts(accelerator))),
                "live": Out(accelerator.columns),
            }
        )

    def elaborate(self, platform):
        m = Module()
        columns = self.accelerator.columns
        active, second, block = Signal(), Signal(), Signal(BlockLayout)
        twice = Mux(self.slot, self.slots[1].second, self.slots[0].second)
        positions = Mux(self.slot, self.slots[1].positions, self.slots[0].positions)
        step_last, advance = Signal(), Signal()
        m.d.comb += [
            step_last.eq(self.step == block.step_top),
            advance.eq(active & (second | ~twice)),
            self.valid.eq(active & ~second),
            self.last.eq(step_last & block.end),
        ]
        tile_end = step_last & block.tile_end
        m.d.comb += self.tile_last.eq(tile_end)
        self.lanes(m, advance, tile_end, tile_end & block.end)
        first = Signal(18)
        for column in range(columns):
            m.d.comb += self.live[column].eq(first + column < positions)
        m.d.sync += second.eq(active & ~second & twice)
        with m.If(advance):
            m.d.sync += [self.step.eq(Mux(step_last, 0, self.step + 1)), self.output.eq(self.output + 1)]
            with m.If(step_last):
                m.d.sync += active.eq(0)
                with m.If(block.tile_end):
                    following = Mux(block.end, 0, self.tile + 1), Mux(block.end, 0, first + columns)
                    m.d.sync += [self.output.eq(0), self.tile.eq(following[0]), first.eq(following[1])]
                    last = self.part == word_parts(self.accelerator) - 1
                    m.d.sync += [
                        self.part.eq(Mux(block.end | last, 0, self.part + 1)),
                        self.word.eq(Mux(block.end, 0, self.word + last)),
                    ]
                with m.If(block.end):
                    m.d.sync += self.slot.eq(~self.slot)
        with m.If(self.block.valid):
            m.d.sync += [active.eq(1), block.eq(self.block)]
        return m

    def lanes(self, m: Module, advance, tile_end, end) -> None:
        """The place of keys (stepped at a tile's end) or values (at every step) in the blocks of lanes; it starts anew
        with the instruction or with the tile."""

        def field(name: str):
            return Mux(self.slot, self.slots[1][name], self.slots[0][name])

        part, fresh, over = Signal(PART_BITS), Signal(init=1), Signal()
        keys = field("destination") == isa.Destination.KEYS
        restart = Mux(keys, end, tile_end)
        m.d.comb += [
            self.lane_part.eq(Mux(fresh, field("dst_part"), part)),
            over.eq((~keys | tile_end) & (self.lane_part == self.ahead(m, "dst_block"))),
        ]
        with m.If(advance):
            m.d.sync += [
                fresh.eq(restart),
                part.eq(Mux(over, 0, self.lane_part + (~keys | tile_end))),
                self.lane_block.eq(Mux(restart, 0, Mux(over, self.lane_block + 1, self.lane_block))),
            ]

    def ahead(self, m: Module, name: str):
        """The step's instruction's count `name`, less 1. A slot is filled long before its first step."""
        first, second = (delayed(m, (slot[name] - 1)[: len(slot[name])], 1) for slot in self.slots)
        return Mux(self.slot, second, first)


class Drain(wiring.Component):
    """Outputs of every block that `block` announces; `i` brings instructions ahead of their blocks.

    Two instructions may be under way. Blocks must come at least steps (2 * steps with `second`) cycles apart.
    Writes need no grant; with `halt` there are none.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        sums = data.ArrayLayout(signed(ACCUMULATOR_BITS), accelerator.columns)
        super().__init__(
            {
                "i": In(stream.Signature(instruction_layout(isa.Opcode.MATRIX))),
                "halt": In(1),
                "busy": Out(1),
                "block": In(BlockLayout),
                "sums": In(sums).array(accelerator.lanes.total),
                "load": In(LoadPort(accelerator)),
                "row_scales": In(RowScalePort(accelerator)),
                "residual": Out(ReadPort(accelerator)),
                "write": Out(WritePort(accelerator)),
                "weights": Out(DrainWrite(accelerator)),
                "done": Out(1),
                "done_signal": Out(16),
                "done_tag": Out(10),
                **({"row_maxima": Out(RowMaximaPort(accelerator))} if accelerator.row_maxima else {}),
                **({"row_moments": Out(RowMomentsPort(accelerator))} if accelerator.row_moments else {}),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.steps = steps = Steps(self.accelerator)
        self.slots = [
            Signal(instruction_layout(isa.Opcode.MATRIX), name=f"slot_{i}", reset_less=True) for i in range(2)
        ]
        used, writing = Signal(2), Signal()
        m.d.comb += [
            steps.block.eq(self.block),
            *(port.eq(slot) for port, slot in zip(steps.slots, self.slots, strict=True)),
            self.i.ready.eq(~used.bit_select(writing, 1)),
            self.busy.eq(used.any()),
        ]
        self.slot_of = [steps.slot]
        for _ in range(16):
            self.slot_of.append(delayed(m, self.slot_of[-1], 1, reset_less=False))
        p15_done = delayed(m, steps.valid & steps.last, 15, reset_less=False)
        m.d.sync += [
            self.done.eq(p15_done & ~self.halt),
            self.done_signal.eq(self.field(15, "signal")),
            self.done_tag.eq(self.field(15, "tag")),
        ]
        with m.If(self.done):
            m.d.sync += used.bit_select(self.slot_of[16], 1).eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [used.bit_select(writing, 1).eq(1), writing.eq(~writing)]
            for i, slot in enumerate(self.slots):
                with m.If(writing == i):
                    m.d.sync += slot.eq(self.i.payload)

        outputs = self.arithmetic(m, steps)
        if self.accelerator.table_pages:
            self.tables(m, outputs)
        self.residuals(m, steps, outputs)
        self.writes(m, steps, outputs)
        if self.accelerator.row_maxima:
            self.maxima(m, steps, outputs)
        if self.accelerator.row_moments:
            self.moments(m, steps, outputs)
        return m

    def field(self, cycle: int, name: str):
        """Field of the instruction to which the step in pipeline cycle `cycle` belongs."""
        a, b = (slot[name] for slot in self.slots)
        value = Mux(self.slot_of[cycle], b, a)
        return value.as_signed() if a.shape().signed else value

    def loaded(self, ram: memory.Memory, target: isa.LoadTarget, m: Module) -> None:
        """A write port of `ram` for LOAD."""
        port = ram.write_port()
        m.d.comb += [
            port.en.eq(self.load.valid & (self.load.target == target)),
            port.addr.eq(self.load.row),
            port.data.eq(self.load.data),
        ]

    def arithmetic(self, m: Module, steps: Steps) -> list[list[Shared]]:
        """The outputs of every bank and column, with their parameters and sums."""
        accelerator, columns, drain = self.accelerator, self.accelerator.columns, self.accelerator.drain
        params = memory.Memory(shape=RecordLayout.size * drain, depth=accelerator.param_rows, init=[])
        m.submodules.params = params
        self.loaded(params, isa.LoadTarget.PARAM, m)
        read = params.read_port()
        mode = self.field(0, "param_mode")
        row = Mux(
            mode == isa.ParamMode.CHANNEL, steps.output, Mux(mode == isa.ParamMode.TOKEN, steps.tile, 0)
        )
        p0_row = (self.field(0, "param") + row)[:ROW_BITS]
        m.d.comb += read.addr.eq(p0_row)
        p2_records = data.View(data.ArrayLayout(RecordLayout, drain), delayed(m, read.data, 1))
        p2_scales = data.View(row_scale_layout(accelerator), self.scales(m, p0_row))
        p2_token = (self.field(2, "param_mode") == isa.ParamMode.TOKEN) & (accelerator.row_scales > 0)
        p4_token, p5_token = delayed(m, p2_token, 2), delayed(m, p2_token, 3)
        p4_rounds = [delayed(m, ((1 << scale.n) >> 1)[:48], 2) for scale in p2_scales]
        p5_scale_n = [delayed(m, scale.n, 3) for scale in p2_scales]
        p2_step, plain = delayed(m, steps.step, 2), accelerator.plain_steps == 2
        p2_group = Mux(self.field(2, "plain"), p2_step << 1, p2_step) if plain else p2_step
        residual_n = self.field(5, "residual_n")
        shared = {
            "p5_residual_m": self.field(5, "residual_m"),
            "p6_residual_round": delayed(m, ((1 << residual_n) >> 1)[:48], 1),
            "p7_residual_n": self.field(7, "residual_n"),
            "p7_wide": self.field(7, "table_wide"),
            "p8_add": self.field(8, "residual"),
            "p10_table": self.field(10, "table"),
            "p10_lo": self.field(10, "lo"),
            "p10_hi": self.field(10, "hi"),
            "p11_m": self.field(11, "second_m"),
            "p12_constant": self.field(12, "second_constant"),
            "p13_n": self.field(13, "second_n"),
            "p13_lo": self.field(13, "second_lo"),
            "p13_hi": self.field(13, "second_hi"),
        }
        if accelerator.row_moments:
            shared["p11_square"] = self.field(11, "moments").any()
        controls = {}
        for name, value in shared.items():
            controls[name] = Signal(value.shape(), name=name)
            m.d.comb += controls[name].eq(value)
        outputs, groups = [], accelerator.lanes.total // drain
        for i in range(accelerator.plain_drain):
            record = p2_records[i % drain]
            kind = (
                (Output, accelerator.table_pages > 0, accelerator.row_moments > 0)
                if i < drain
                else (PlainOutput,)
            )
            group = Signal(8, name=f"group_{i}")
            sums = Signal.like(self.sums[0], name=f"p2_sums_{i}")
            entry = Mux(self.field(2, "permute"), record.entry, p2_group)
            m.d.comb += group.eq(entry if i < drain else p2_step << 1 | 1)
            m.d.comb += sums.eq(chosen([self.sums[g * drain + i % drain] for g in range(groups)], group))
            p4_constant, p5_n = delayed(m, record.constant, 2), delayed(m, record.n, 3)
            outputs.append([])
            for c in range(columns):
                output = Shared(*kind)
                m.submodules[f"output_{i}_{c}"] = output
                m.d.comb += [
                    output.p2_sum.eq(sums[c]),
                    output.p2_m.eq(Mux(p2_token, p2_scales[c].m, record.m)),
                    output.p4_constant.eq(Mux(p4_token, p4_rounds[c], p4_constant)),
                    output.p5_n.eq(Mux(p5_token, p5_scale_n[c], p5_n)),
                    *(
                        getattr(output, name).eq(value)
                        for name, value in controls.items()
                        if name in output.signature.members
                    ),
                ]
                outputs[-1].append(output)
        return outputs

    def scales(self, m: Module, p0_row: Value) -> Value:
        """Row scales, in p2; 0 where there are none."""
        size, rows = row_scale_layout(self.accelerator).size, self.accelerator.row_scales
        if not rows:
            return C(0, size)
        m.submodules.row_scales = scales = memory.Memory(shape=size, depth=rows, init=[])
        read, write = scales.read_port(), scales.write_port()
        m.d.comb += [
            read.addr.eq(p0_row),
            write.en.eq(self.row_scales.valid),
            write.addr.eq(self.row_scales.row),
            write.data.eq(self.row_scales.scales),
        ]
        return delayed(m, read.data, 1)

    def tables(self, m: Module, outputs: list[list[Shared]]) -> None:
        """The unary tables: a copy for each output that is not plain, because a block RAM has one port beside that which
        loads it."""
        depth = self.accelerator.table_pages * TABLE_PAGE_ENTRIES // TABLE_ROW_BYTES
        for bank in outputs[: self.accelerator.drain]:
            for output in bank:
                copy = memory.Memory(shape=TABLE_ROW_BYTES * 8, depth=depth, init=[])
                m.submodules += copy
                self.loaded(copy, isa.LoadTarget.TABLE, m)
                read = copy.read_port()
                m.d.comb += [
                    read.addr.eq(Cat(output.p8_index[3:], self.field(8, "table_page"))),
                    output.p9_row.eq(read.data),
                ]

    def residuals(self, m: Module, steps: Steps, outputs: list[list[Shared]]) -> None:
        """Residual codes: requested in p2, there in p4."""
        depth, drain = self.accelerator.depth, self.accelerator.drain
        parts = depth // (2 * drain)
        part_bits = exact_log2(parts)
        p1_tile_row = delayed(m, (steps.tile * self.field(0, "residual_stride"))[:ROW_BITS], 1)
        p1_output = delayed(m, steps.output, 1)
        p1_valid = delayed(m, steps.valid, 1, reset_less=False) & self.field(1, "residual")
        m.d.comb += self.residual.valid.eq(delayed(m, p1_valid, 1, reset_less=False) & ~self.halt)
        m.d.sync += self.residual.row.eq(
            self.field(1, "residual_row") + p1_tile_row + (p1_output >> part_bits)
        )
        p4_part = delayed(m, p1_output[:part_bits], 3)
        for c in range(self.accelerator.columns):
            word = self.residual.data.word_select(c, depth * 8)
            p5 = delayed(m, Array(word.word_select(i, drain * 16) for i in range(parts))[p4_part], 1)
            for i in range(drain):
                m.d.comb += outputs[i][c].p5_residual.eq(p5.word_select(i, 16))

    def maxima(self, m: Module, steps: Steps, outputs: list[list[Shared]]) -> None:
        """The largest output of every column in a tile."""
        m.submodules.maxima = maxima = Maxima(self.accelerator)
        wiring.connect(m, maxima.o, wiring.flipped(self.row_maxima))
        m.d.comb += [
            maxima.valid.eq(steps.valid & self.field(0, "maxima")),
            maxima.last.eq(steps.tile_last),
            maxima.step.eq(steps.output),
            maxima.plain.eq(self.field(0, "plain")),
            maxima.channels.eq(self.field(0, "second_stride")),
            maxima.row.eq(self.field(0, "second_dst") + steps.tile),
            *(
                maxima.p13_codes[c][i].eq(output.p13)
                for i, bank in enumerate(outputs)
                for c, output in enumerate(bank)
            ),
        ]

    def moments(self, m: Module, steps: Steps, outputs: list[list[Shared]]) -> None:
        """The sums of every column's outputs and of their squares in a tile."""
        m.submodules.moments = moments = RowMoments(self.accelerator)
        wiring.connect(m, moments.o, wiring.flipped(self.row_moments))
        m.d.comb += [
            moments.valid.eq(steps.valid & self.field(0, "moments").any()),
            moments.first.eq(steps.output == 0),
            moments.last.eq(steps.tile_last),
            moments.add.eq(self.field(0, "moments") == isa.Moments.ADD),
            moments.row.eq(self.field(0, "second_dst") + steps.tile),
        ]
        for i, bank in enumerate(outputs[: self.accelerator.drain]):
            for c, output in enumerate(bank):
                m.d.comb += [
                    moments.p12_codes[c][i].eq(output.p12),
                    moments.p12_squares[c][i].eq(output.p12_square),
                ]

    def writes(self, m: Module, steps: Steps, outputs: list[list[Shared]]) -> None:
        """Rows, masks and data of all destinations."""
        accelerator, columns = self.accelerator, self.accelerator.columns
        depth, drain = accelerator.depth, accelerator.drain
        block_bits = exact_log2(depth // drain)
        p11_tile, p11_output = delayed(m, steps.tile, 11), delayed(m, steps.output, 11)
        more = accelerator.plain_steps == 2
        p11_destination, p11_wide = self.field(11, "destination"), self.field(11, "wide")
        p11_plain, p13_plain = (self.field(11, "plain"), self.field(13, "plain")) if more else (0, 0)
        keys = p11_destination == isa.Destination.KEYS
        values = p11_destination == isa.Destination.VALUES
        p11_lane_block, p11_word = delayed(m, steps.lane_block, 11), delayed(m, steps.word, 11)
        p11_major = Mux(keys | values, p11_lane_block, p11_tile)
        p11_first = Mux(keys | values, 0, self.field(11, "dst_channel") >> exact_log2(drain))
        p11_placed = (p11_output + p11_first)[:ROW_BITS]
        narrow_row = Mux(p11_plain, p11_placed << 1, p11_placed)
        placed_row = Mux(p11_wide, narrow_row << 1, narrow_row) >> block_bits
        p11_minor = Mux(values, p11_word, placed_row)
        p12_base = delayed(m, (p11_major * self.field(11, "dst_stride"))[:ROW_BITS], 1)
        p12_second = delayed(m, (p11_tile * self.field(11, "second_stride"))[:ROW_BITS], 1)
        p13_row = delayed(m, (self.field(12, "dst") + p12_base + delayed(m, p11_minor, 1))[:ROW_BITS], 1)
        second_row = self.field(12, "second_dst") + p12_second + delayed(m, p11_output >> block_bits, 1)
        p14_second_row = delayed(m, second_row[:ROW_BITS], 2)

        p13_valid, p13_live = delayed(m, steps.valid, 13, reset_less=False), delayed(m, steps.live, 13)
        p14_valid, p14_live = (
            delayed(m, p13_valid & self.field(13, "second"), 1, reset_less=False),
            delayed(m, p13_live, 1),
        )
        p13_output = delayed(m, p11_placed, 2)
        p14_output = delayed(m, p11_output, 3)
        to_scratchpad = self.field(13, "destination") == isa.Destination.SCRATCHPAD
        wide = self.field(13, "wide") & ~p14_valid
        write_valid = Signal()
        m.d.comb += self.write.valid.eq(write_valid & ~self.halt)
        m.d.sync += [
            write_valid.eq((p13_valid & to_scratchpad) | p14_valid),
            self.write.row.eq(Mux(p14_valid, p14_second_row, p13_row)),
        ]
        part = Mux(p14_valid, p14_output, p13_output)[:block_bits]
        narrow_mask = Cat((part == b).replicate(drain) for b in range(depth // drain))
        wide_mask = Cat(
            (part[: block_bits - 1] == b).replicate(2 * drain) for b in range(depth // (2 * drain))
        )
        word_mask = Mux(wide ^ p13_plain, wide_mask, narrow_mask)
        if more:
            last = range(depth // (4 * drain))
            plain_mask = Cat((part[: block_bits - 2] == b).replicate(4 * drain) for b in last)
            word_mask = Mux(wide & p13_plain, plain_mask, word_mask)
        for c in range(columns):
            live = Mux(p14_valid, p14_live[c], p13_live[c])
            codes = [outputs[i][c].p13 for i in range(drain)]
            narrow = Cat(Mux(p14_valid, outputs[i][c].p14_second, codes[i][:8])[:8] for i in range(drain))
            word = Mux(wide, Cat(codes).replicate(depth // (2 * drain)), narrow.replicate(depth // drain))
            if more:
                all_codes = [bank[c].p13 for bank in outputs]
                wide_word = Cat(all_codes).replicate(depth // (4 * drain))
                narrow_word = Cat(code[:8] for code in all_codes).replicate(depth // (2 * drain))
                word = Mux(p13_plain, Mux(wide, wide_word, narrow_word), word)
            m.d.sync += [
                self.write.data.word_select(c, depth * 8).eq(word),
                self.write.mask.word_select(c, depth).eq(Mux(live, word_mask, 0)),
            ]

        p13_keys = self.field(13, "destination") == isa.Destination.KEYS
        p13_part = delayed(m, steps.part, 13)
        weights_valid = Signal()
        m.d.comb += self.weights.valid.eq(weights_valid & ~self.halt)
        m.d.sync += [
            weights_valid.eq(p13_valid & ~to_scratchpad),
            self.weights.keys.eq(p13_keys),
            self.weights.row.eq(p13_row),
            self.weights.part.eq(delayed(m, steps.lane_part, 13)),
            self.weights.block.eq(Mux(p13_keys, p13_output[:block_bits], p13_part)),
        ]
        for c in range(columns):
            for i in range(drain):
                m.d.sync += self.weights.values[c][i].eq(Mux(p13_live[c], outputs[i][c].p13[:8], 0))
