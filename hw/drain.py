"""Drain: from the array's sums to outputs in the scratchpad or the weight memory.

A step takes `drain` lanes of every column. Its pipeline never stands; signals carry their cycle as a prefix:
p0 step counters and addresses, p2 parameters and the chosen sums, p8 requantized, p13 clamped, p17 write, p18 second write,
p19 done. Steps are counted `drain_stages` cycles before p0: one for the parameters' address, and the others for the choice of sums.
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
from .lanes.sums import registers_behind
from .maxima import Maxima
from .moments import RowMoments
from .output import Output, PlainOutput
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
from .shared import Shared
from .steps import Steps
from .weights import DrainWrite

__all__ = ["DONE_CYCLE", "SUMS_CYCLE", "Drain"]

SUMS_CYCLE = 3
"""Cycles from a step's counters to the sums that it reads: the first step of a block has its counters a cycle after `block`."""

DONE_CYCLE = 19
"""Cycle of an instruction's last step in which `done` is high."""

RecordLayout = data.StructLayout({"m": 16, "n": 6, "_spare": 2, "entry": 8, "constant": signed(48)})
assert RecordLayout.size == PARAM_BYTES * 8


def chosen(m: Module, values, index, registers: int):
    """values[index], `registers` cycles later, by multiplexers of two: of sixteen cases Yosys would make a shift of four times
    their size. Any of them for an index beyond."""
    values = [Value.cast(value) for value in values]
    for level, count in enumerate(registers_behind(len(values), registers)):
        values, index = [delayed(m, value, count) for value in values], delayed(m, index, count)
        values = [
            Mux(index[level], pair[-1], pair[0]) if pair[1:] else pair[0] for pair in pairs_of(values, 2)
        ]
    return values[0]


class Later:
    """The outputs of `steps` some cycles later."""

    def __init__(self, m: Module, steps: Steps, cycles: int):
        for name, member in steps.signature.members.items():
            if member.flow == Out:
                control = name in ("valid", "slot")
                setattr(self, name, delayed(m, getattr(steps, name), cycles, reset_less=not control))


class Drain(wiring.Component):
    """Outputs of every block that `block` announces; `i` brings instructions ahead of their blocks, each a cycle or more after one
    in which it was ready: then it has room for another one than what it is given.

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
        m.submodules.steps = early = Steps(self.accelerator)
        self.ahead = self.accelerator.drain_stages
        steps = Later(m, early, self.ahead)
        self.slots = [
            Signal(instruction_layout(isa.Opcode.MATRIX), name=f"slot_{i}", reset_less=True) for i in range(2)
        ]
        used, writing = Signal(2), Signal()
        m.d.comb += [
            early.block.eq(self.block),
            *(port.eq(slot) for port, slot in zip(early.slots, self.slots, strict=True)),
            self.i.ready.eq(~used.bit_select(writing ^ self.i.valid, 1)),
            self.busy.eq(used.any()),
        ]
        self.slot_of, self.following = [early.slot], early.following
        for _ in range(self.ahead + DONE_CYCLE):
            self.slot_of.append(delayed(m, self.slot_of[-1], 1, reset_less=False))
        p18_done = delayed(m, steps.valid & steps.last, DONE_CYCLE - 1, reset_less=False)
        m.d.sync += self.done.eq(p18_done & ~self.halt)
        m.d.comb += [
            self.done_signal.eq(self.field(m, DONE_CYCLE, "signal")),
            self.done_tag.eq(self.field(m, DONE_CYCLE, "tag")),
        ]
        with m.If(self.done):
            m.d.sync += used.bit_select(self.slot_of[-1], 1).eq(0)
        with m.If(self.i.valid):
            m.d.sync += [used.bit_select(writing, 1).eq(1), writing.eq(~writing)]
            for i, slot in enumerate(self.slots):
                with m.If(writing == i):
                    m.d.sync += slot.eq(self.i.payload)

        outputs = self.arithmetic(m, early)
        if self.accelerator.table_pages:
            self.tables(m, outputs)
        self.residuals(m, steps, outputs)
        self.writes(m, steps, outputs)
        if self.accelerator.row_maxima:
            self.maxima(m, steps, outputs)
        if self.accelerator.row_moments:
            self.moments(m, steps, outputs)
        return m

    def field(self, m: Module, cycle: int, name: str) -> Value:
        """Field of the instruction to which the step in pipeline cycle `cycle` belongs, from a register."""
        a, b = (slot[name] for slot in self.slots)
        at = cycle + self.ahead
        before = self.slot_of[at - 1] if at else self.following
        return delayed(m, Mux(before, b, a), 1)

    def loaded(self, ram: memory.Memory, target: isa.LoadTarget, m: Module) -> None:
        """A write port of `ram` for LOAD."""
        port = ram.write_port()
        m.d.comb += [
            port.en.eq(self.load.valid & (self.load.target == target)),
            port.addr.eq(self.load.row),
            port.data.eq(self.load.data),
        ]

    def arithmetic(self, m: Module, early: Steps) -> list[list[Shared]]:
        """The outputs of every bank and column, with their parameters and sums, chosen from p3 - ahead on."""
        accelerator, columns, drain = self.accelerator, self.accelerator.columns, self.accelerator.drain
        ahead = self.ahead
        params = memory.Memory(shape=RecordLayout.size * drain, depth=accelerator.param_rows, init=[])
        m.submodules.params = params
        self.loaded(params, isa.LoadTarget.PARAM, m)
        read = params.read_port()
        mode = self.field(m, -ahead, "param_mode")
        row = Mux(
            mode == isa.ParamMode.CHANNEL, early.output, Mux(mode == isa.ParamMode.TOKEN, early.tile, 0)
        )
        early_row = delayed(m, (self.field(m, -ahead, "param") + row)[:ROW_BITS], 1)
        m.d.comb += read.addr.eq(early_row)
        early_data = delayed(m, read.data, 1)
        early_records, p2_records = (
            data.View(data.ArrayLayout(RecordLayout, drain), delayed(m, early_data, cycles))
            for cycles in (0, ahead - 1)
        )
        p2_scales = data.View(row_scale_layout(accelerator), delayed(m, self.scales(m, early_row), ahead - 1))
        p2_token = (self.field(m, 2, "param_mode") == isa.ParamMode.TOKEN) & (accelerator.row_scales > 0)
        p4_token, p5_token = delayed(m, p2_token, 2), delayed(m, p2_token, 3)
        p4_rounds = [delayed(m, ((1 << scale.n) >> 1)[:48], 2) for scale in p2_scales]
        p5_scale_n = [delayed(m, scale.n, 3) for scale in p2_scales]
        step, plain = delayed(m, early.step, 3), accelerator.plain_steps == 2
        lane_group = Mux(self.field(m, 3 - ahead, "plain"), step << 1, step) if plain else step
        p15_n, p15_lo, p15_hi = (self.field(m, 15, f"second_{name}") for name in ("n", "lo", "hi"))
        shared = {
            "p6_residual_m": self.field(m, 6, "residual_m"),
            "p7_residual_round": delayed(m, ((1 << self.field(m, 6, "residual_n")) >> 1)[:48], 1),
            "p8_residual_n": self.field(m, 8, "residual_n"),
            "p8_wide": self.field(m, 8, "table_wide"),
            "p10_add": self.field(m, 10, "residual"),
            "p11_table": self.field(m, 11, "table"),
            "p11_lo": self.field(m, 11, "lo"),
            "p11_hi": self.field(m, 11, "hi"),
            "p12_m": self.field(m, 12, "second_m"),
            "p14_constant": self.field(m, 14, "second_constant"),
            "p15_n": p15_n,
            "p16_lo": self.field(m, 16, "second_lo"),
            "p16_hi": self.field(m, 16, "second_hi"),
            "p16_least": delayed(m, (p15_lo << p15_n[:2])[:11].as_signed(), 1),
            "p16_most": delayed(m, (((p15_hi + 1) << p15_n[:2]) - 1)[:11].as_signed(), 1),
        }
        if accelerator.row_moments:
            shared["p12_square"] = self.field(m, 12, "moments").any()
        controls = {}
        for name, value in shared.items():
            controls[name] = Signal(value.shape(), name=name)
            m.d.comb += controls[name].eq(value)
        outputs, groups, permute = [], accelerator.lanes.total // drain, self.field(m, 3 - ahead, "permute")
        for i in range(accelerator.plain_drain):
            record = p2_records[i % drain]
            kind = (
                (Output, accelerator.table_pages > 0, accelerator.row_moments > 0)
                if i < drain
                else (PlainOutput,)
            )
            group = Signal(8, name=f"group_{i}")
            sums = Signal.like(self.sums[0], name=f"p2_sums_{i}")
            entry = Mux(permute, early_records[i % drain].entry, lane_group)
            m.d.comb += group.eq(entry if i < drain else step << 1 | 1)
            of_groups = [self.sums[g * drain + i % drain] for g in range(groups)]
            m.d.comb += sums.eq(chosen(m, of_groups, group, ahead - 1))
            p4_constant, p5_n = delayed(m, record.constant, 2), delayed(m, record.n, 3)
            outputs.append([])
            for c in range(columns):
                output = Shared(*kind)
                m.submodules[f"output_{i}_{c}"] = output
                m.d.comb += [
                    output.p2_sum.eq(sums[c]),
                    output.p2_m.eq(Mux(p2_token, p2_scales[c].m, record.m)),
                    output.p5_constant.eq(delayed(m, Mux(p4_token, p4_rounds[c], p4_constant), 1)),
                    output.p6_n.eq(delayed(m, Mux(p5_token, p5_scale_n[c], p5_n), 1)),
                    *(
                        getattr(output, name).eq(value)
                        for name, value in controls.items()
                        if name in output.signature.members
                    ),
                ]
                outputs[-1].append(output)
        return outputs

    def scales(self, m: Module, row: Value) -> Value:
        """Row scales two cycles after `row`; 0 where there are none."""
        size, rows = row_scale_layout(self.accelerator).size, self.accelerator.row_scales
        if not rows:
            return C(0, size)
        m.submodules.row_scales = scales = memory.Memory(shape=size, depth=rows, init=[])
        read, write = scales.read_port(), scales.write_port()
        m.d.comb += [
            read.addr.eq(row),
            write.en.eq(self.row_scales.valid),
            write.addr.eq(self.row_scales.row),
            write.data.eq(self.row_scales.scales),
        ]
        return delayed(m, read.data, 1)

    def tables(self, m: Module, outputs: list[list[Shared]]) -> None:
        """The unary tables: a copy for each output that is not plain, because a block RAM has one port beside that which
        loads it."""
        depth = self.accelerator.table_pages * TABLE_PAGE_ENTRIES // TABLE_ROW_BYTES
        p9_page = self.field(m, 9, "table_page")
        for bank in outputs[: self.accelerator.drain]:
            for output in bank:
                copy = memory.Memory(shape=TABLE_ROW_BYTES * 8, depth=depth, init=[])
                m.submodules += copy
                self.loaded(copy, isa.LoadTarget.TABLE, m)
                read = copy.read_port()
                m.d.comb += [
                    read.addr.eq(Cat(output.p9_index[3:], p9_page)),
                    output.p11_row.eq(delayed(m, read.data, 1)),
                ]

    def residuals(self, m: Module, steps: Steps, outputs: list[list[Shared]]) -> None:
        """Residual codes: requested in p3, there in p5."""
        depth, drain = self.accelerator.depth, self.accelerator.drain
        parts = depth // (2 * drain)
        part_bits = exact_log2(parts)
        p1_output, p1_tile = delayed(m, steps.output, 1), delayed(m, steps.tile[:ROW_BITS], 1)
        p2_tile_row = delayed(m, (p1_tile * self.field(m, 1, "residual_stride"))[:ROW_BITS], 1)
        p2_row = delayed(m, (self.field(m, 1, "residual_row") + (p1_output >> part_bits))[:ROW_BITS], 1)
        p1_valid = delayed(m, steps.valid, 1, reset_less=False) & self.field(m, 1, "residual")
        p2_valid = delayed(m, p1_valid, 1, reset_less=False) & ~self.halt
        m.d.comb += self.residual.valid.eq(delayed(m, p2_valid, 1, reset_less=False))
        m.d.sync += self.residual.row.eq(p2_row + p2_tile_row)
        p5_part = delayed(m, p1_output[:part_bits], 4)
        for c in range(self.accelerator.columns):
            word = self.residual.data.word_select(c, depth * 8)
            p6 = delayed(m, Array(word.word_select(i, drain * 16) for i in range(parts))[p5_part], 1)
            for i in range(drain):
                m.d.comb += outputs[i][c].p6_residual.eq(p6.word_select(i, 16))

    def maxima(self, m: Module, steps: Steps, outputs: list[list[Shared]]) -> None:
        """The largest output of every column in a tile."""
        m.submodules.maxima = maxima = Maxima(self.accelerator)
        wiring.connect(m, maxima.o, wiring.flipped(self.row_maxima))
        m.d.comb += [
            maxima.valid.eq(steps.valid & self.field(m, 0, "maxima")),
            maxima.last.eq(steps.tile_last),
            maxima.step.eq(steps.output),
            maxima.plain.eq(self.field(m, 0, "plain")),
            maxima.channels.eq(self.field(m, 0, "second_stride")),
            maxima.row.eq(self.field(m, 0, "second_dst") + steps.tile),
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
            moments.valid.eq(steps.valid & self.field(m, 0, "moments").any()),
            moments.first.eq(steps.output == 0),
            moments.last.eq(steps.tile_last),
            moments.add.eq(self.field(m, 0, "moments") == isa.Moments.ADD),
            moments.row.eq(self.field(m, 0, "second_dst") + steps.tile),
        ]
        for i, bank in enumerate(outputs[: self.accelerator.drain]):
            for c, output in enumerate(bank):
                m.d.comb += [
                    moments.p14_codes[c][i].eq(output.p14),
                    moments.p14_squares[c][i].eq(output.p14_square),
                ]

    def writes(self, m: Module, steps: Steps, outputs: list[list[Shared]]) -> None:
        """Rows, masks and data of all destinations."""
        accelerator, columns = self.accelerator, self.accelerator.columns
        depth, drain = accelerator.depth, accelerator.drain
        block_bits = exact_log2(depth // drain)
        more = accelerator.plain_steps == 2
        p11_destination = self.field(m, 11, "destination")
        p12_lanes = delayed(m, p11_destination != isa.Destination.SCRATCHPAD, 1)
        p12_values = delayed(m, p11_destination == isa.Destination.VALUES, 1)
        p11_channel = self.field(m, 11, "dst_channel") >> exact_log2(drain)
        p11_first = Mux(p11_destination == isa.Destination.SCRATCHPAD, p11_channel, 0)
        p11_output, p12_tile = delayed(m, steps.output, 11), delayed(m, steps.tile[:ROW_BITS], 12)
        p12_placed = delayed(m, (p11_output + p11_first)[:ROW_BITS], 1)
        narrow_row = Mux(self.field(m, 12, "plain"), p12_placed << 1, p12_placed) if more else p12_placed
        placed_row = Mux(self.field(m, 12, "wide"), narrow_row << 1, narrow_row) >> block_bits
        p13_minor = delayed(m, Mux(p12_values, delayed(m, steps.word, 12), placed_row)[:ROW_BITS], 1)
        p13_major = delayed(m, Mux(p12_lanes, delayed(m, steps.lane_block, 12), p12_tile), 1)
        p14_base = delayed(m, (p13_major * self.field(m, 13, "dst_stride"))[:ROW_BITS], 1)
        p14_place = delayed(m, (self.field(m, 13, "dst") + p13_minor)[:ROW_BITS], 1)
        p16_row = delayed(m, (p14_base + p14_place)[:ROW_BITS], 2)
        p13_tile, p13_part = delayed(m, p12_tile, 1), delayed(m, p11_output, 2) >> block_bits
        p14_second_base = delayed(m, (p13_tile * self.field(m, 13, "second_stride"))[:ROW_BITS], 1)
        p14_second_place = delayed(m, (self.field(m, 13, "second_dst") + p13_part)[:ROW_BITS], 1)
        p17_second_row = delayed(m, (p14_second_base + p14_second_place)[:ROW_BITS], 3)

        p16_valid, p16_live = delayed(m, steps.valid, 16, reset_less=False), delayed(m, steps.live, 16)
        p16_plain = self.field(m, 16, "plain") if more else 0
        p17_valid, p17_live = (
            delayed(m, p16_valid & self.field(m, 16, "second"), 1, reset_less=False),
            delayed(m, p16_live, 1),
        )
        p16_output, p17_output = delayed(m, p12_placed, 4), delayed(m, p11_output, 6)
        to_scratchpad = self.field(m, 16, "destination") == isa.Destination.SCRATCHPAD
        wide = self.field(m, 16, "wide") & ~p17_valid
        m.d.sync += self.write.valid.eq(((p16_valid & to_scratchpad) | p17_valid) & ~self.halt)
        m.d.comb += self.write.row.eq(delayed(m, Mux(p17_valid, p17_second_row, p16_row), 1))
        part = Mux(p17_valid, p17_output, p16_output)[:block_bits]
        narrow_mask = Cat((part == b).replicate(drain) for b in range(depth // drain))
        wide_mask = Cat(
            (part[: block_bits - 1] == b).replicate(2 * drain) for b in range(depth // (2 * drain))
        )
        word_mask = Mux(wide ^ p16_plain, wide_mask, narrow_mask)
        if more:
            last = range(depth // (4 * drain))
            plain_mask = Cat((part[: block_bits - 2] == b).replicate(4 * drain) for b in last)
            word_mask = Mux(wide & p16_plain, plain_mask, word_mask)
        for c in range(columns):
            live = Mux(p17_valid, p17_live[c], p16_live[c])
            codes = [outputs[i][c].p16 for i in range(drain)]
            narrow = Cat(Mux(p17_valid, outputs[i][c].p17_second, codes[i][:8])[:8] for i in range(drain))
            word = Mux(wide, Cat(codes).replicate(depth // (2 * drain)), narrow.replicate(depth // drain))
            if more:
                all_codes = [bank[c].p16 for bank in outputs]
                wide_word = Cat(all_codes).replicate(depth // (4 * drain))
                narrow_word = Cat(code[:8] for code in all_codes).replicate(depth // (2 * drain))
                word = Mux(p16_plain, Mux(wide, wide_word, narrow_word), word)
            m.d.comb += [
                self.write.data.word_select(c, depth * 8).eq(delayed(m, word, 1)),
                self.write.mask.word_select(c, depth).eq(delayed(m, Mux(live, word_mask, 0), 1)),
            ]

        p16_keys = self.field(m, 16, "destination") == isa.Destination.KEYS
        p16_part = delayed(m, steps.part, 16)
        p16_block = Mux(p16_keys, p16_output[:block_bits], p16_part)
        m.d.sync += self.weights.valid.eq(p16_valid & ~to_scratchpad & ~self.halt)
        m.d.comb += [
            self.weights.keys.eq(delayed(m, p16_keys, 1)),
            self.weights.row.eq(delayed(m, p16_row, 1)),
            self.weights.part.eq(delayed(m, steps.lane_part, 17)),
            self.weights.block.eq(delayed(m, p16_block[: len(self.weights.block)], 1)),
        ]
        for c in range(columns):
            for i in range(drain):
                p16_value = Mux(p16_live[c], outputs[i][c].p16[:8], 0)
                m.d.comb += self.weights.values[c][i].eq(delayed(m, p16_value, 1))
