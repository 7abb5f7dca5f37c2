"""The vector engine: control, memories, columns and write queue put together."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from ...arch import isa
from ...arch.accelerator import TABLE_PAGE_ENTRIES, Accelerator
from ..ports import (
    EngineSignature,
    IndexRead,
    IndexWrite,
    LoadPort,
    ReadPort,
    RegisterWrite,
    RowMaximaPort,
    RowMomentsPort,
    RowScalePort,
    WritePort,
    row_maxima_layout,
)
from ..shared import Shared
from .column import Column, norm_layout
from .compact import Compactor
from .layernorm import Moments
from .sequencer import Sequencer
from .softmax import RowScales
from .steps import OUTPUT_STAGE, STAGES, step_layout
from .summed import Summed
from .table import Table
from .writer import Writer

__all__ = ["Engine"]


class Engine(wiring.Component):
    """Executes VECTOR instructions, one at a time.

    A step (`vector` channels of every column; GATHER: of 16 bits, of one) is read, computed and written each cycle;
    a step with a second operand takes two. Reads and writes may be stalled for any time. Throughput is one step per
    cycle in every pass; an instruction takes about 25 cycles more than its steps, LAYERNORM another columns + 12 for
    its first tile. COMPACT takes columns + 1 cycles for each tile, GATHER at least 4 for each position.
    `load` accepts rows of TABLE, NORM, EXP, RECIP and RSQRT in every cycle and ignores the others.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        super().__init__(
            {
                "control": Out(EngineSignature(isa.Opcode.VECTOR)),
                "read": Out(ReadPort(accelerator)),
                "write": Out(WritePort(accelerator)),
                "load": In(LoadPort(accelerator)),
                "row_scales": Out(RowScalePort(accelerator)),
                "index_read": Out(IndexRead()),
                "index_write": Out(IndexWrite()),
                "compacting": Out(1),
                "register_write": Out(RegisterWrite()),
                **({"row_maxima": In(RowMaximaPort(accelerator))} if accelerator.row_maxima else {}),
                **({"row_moments": In(RowMomentsPort(accelerator))} if accelerator.row_moments else {}),
            }
        )

    def elaborate(self, platform):
        m = Module()
        a = self.accelerator
        m.submodules.sequencer = sequencer = Sequencer(a)
        m.submodules.writer = writer = Writer(a)
        connect(m, flipped(self.control), sequencer.control)
        connect(m, flipped(self.write), writer.write)
        connect(m, flipped(self.index_read), sequencer.entries)
        now = sequencer.instruction
        m.d.comb += [
            self.load.ready.eq(1),
            self.read.valid.eq(sequencer.read_valid),
            self.read.row.eq(sequencer.read_row),
            sequencer.read_ready.eq(self.read.ready),
            sequencer.written.eq(writer.written),
            sequencer.write_stalled.eq(writer.stalled),
            writer.ticket.eq(sequencer.ticket),
            writer.ticket_valid.eq(sequencer.ticket_valid),
            writer.wide.eq(now.dst_wide),
            writer.halt.eq(sequencer.halted),
        ]

        steps = Signal(data.ArrayLayout(step_layout(a), STAGES))
        m.d.comb += steps[0].eq(sequencer.step)
        m.d.sync += [steps[stage].eq(steps[stage - 1]) for stage in range(1, STAGES)]
        output_step = steps[OUTPUT_STAGE]
        m.d.comb += writer.outputs_valid.eq(output_step.valid & ~output_step.measure)

        columns = [Shared(Column, a) for _ in range(a.columns)]
        norm = self.norm(m, now, steps[8]) if a.norm_rows else None
        shared = Array(column.codes.as_value() for column in columns)[steps[3].column]
        for c, column in enumerate(columns):
            m.submodules[f"column_{c}"] = column
            m.d.comb += [
                column.instruction.eq(now),
                column.steps.eq(steps),
                column.word.eq(self.read.data.word_select(c, a.depth * 8)),
                column.shared.eq(shared),
                writer.outputs[c].eq(column.outputs),
            ]
            if a.norm_rows:
                m.d.comb += column.norm.eq(norm)
        if a.table_pages:
            self.unary(m, now, columns)
        if a.norm_rows:
            moments = self.moments(m, now, steps[7], columns)
            if a.row_moments:
                self.summed(m, sequencer, moments)
        if a.row_scales:
            self.exponentials(m, columns)
            self.scales(m, now, steps[23], columns)
        if a.row_maxima:
            self.maxima(m, now, steps[7], columns)
        if a.index_rows:
            self.compactor(m, now, steps[OUTPUT_STAGE], columns)
        return m

    def norm(self, m: Module, now: data.View, step: data.View) -> data.View:
        """The norm memory; its row for the step that is now in stage 8 comes in stage 10."""
        a = self.accelerator
        layout = norm_layout(a.vector)
        m.submodules.norm = rows = memory.Memory(shape=layout, depth=a.norm_rows, init=[])
        write, read = rows.write_port(), rows.read_port()
        following = Signal(16, reset_less=True)
        row = Signal(16)
        m.d.comb += [
            write.en.eq(self.load.valid & (self.load.target == isa.LoadTarget.NORM)),
            write.addr.eq(self.load.row),
            write.data.eq(self.load.data[: layout.size]),
            row.eq(Mux(step.first, now.param, following)),
            read.en.eq(1),
            read.addr.eq(row),
        ]
        shown = Signal(layout, reset_less=True)
        m.d.sync += [
            following.eq(Mux(step.valid & ~step.measure, row + 1, following)),
            shown.eq(read.data),
        ]
        return shown

    def table(self, m: Module, target: isa.LoadTarget, entries: int, bits: int, readers: int) -> Table:
        """One table, filled by LOADs of its target."""
        m.submodules[target.name.lower()] = table = Table(entries, bits, readers)
        m.d.comb += [
            table.load_valid.eq(self.load.valid & (self.load.target == target)),
            table.load_row.eq(self.load.row),
            table.load_data.eq(self.load.data),
        ]
        return table

    def unary(self, m: Module, now: data.View, columns: list[Shared]) -> None:
        """Unary tables, with a reader for every lane."""
        a = self.accelerator
        table = self.table(m, isa.LoadTarget.TABLE, TABLE_PAGE_ENTRIES * a.table_pages, 8, a.vector_lanes)
        for lane in range(a.vector_lanes):
            column, i = columns[lane // a.vector], lane % a.vector
            m.d.comb += [
                table.index[lane].eq(Cat(column.unary_index[i], now.table_page)),
                column.unary[i].eq(table.value[lane]),
            ]

    def exponentials(self, m: Module, columns: list[Shared]) -> None:
        """EXP, likewise."""
        a = self.accelerator
        table = self.table(m, isa.LoadTarget.EXP, 256, 8, a.vector_lanes)
        for lane in range(a.vector_lanes):
            column, i = columns[lane // a.vector], lane % a.vector
            m.d.comb += [table.index[lane].eq(column.exp_index[i]), column.exp[i].eq(table.value[lane])]

    def moments(self, m: Module, now: data.View, step: data.View, columns: list[Shared]) -> Moments:
        """From the columns' sums (`step` in stage 7) to their moments."""
        m.submodules.moments = moments = Moments(self.accelerator.columns, self.accelerator.row_moments > 0)
        rsqrt = self.table(m, isa.LoadTarget.RSQRT, 1024, 16, 1)
        m.d.comb += [
            moments.capture.eq(step.valid & step.measure & step.last & (now.op == isa.VectorOp.LAYERNORM)),
            moments.bank.eq(step.bank),
            moments.channels.eq(now.channels),
            moments.eps.eq(now.constant),
            rsqrt.index[0].eq(moments.index),
            moments.value.eq(rsqrt.value[0]),
        ]
        for c, column in enumerate(columns):
            m.d.comb += moments.sums[c].eq(column.sums)
            m.d.comb += [column.moments[bank].eq(moments.moments[bank][c]) for bank in range(2)]
        return moments

    def summed(self, m: Module, sequencer: Sequencer, moments: Moments) -> None:
        """From the memory of row moments to the columns' moments."""
        m.submodules.summed = summed = Summed(self.accelerator)
        connect(m, flipped(self.row_moments), summed.write)
        m.d.comb += [
            summed.start.eq(self.control.i.valid & self.control.i.ready),
            summed.row.eq(self.control.i.payload.index),
            summed.prepare.eq(sequencer.prepare),
            moments.word_valid.eq(summed.valid),
            moments.word_bank.eq(summed.bank),
            moments.word.eq(summed.sums),
        ]

    def scales(self, m: Module, now: data.View, step: data.View, columns: list[Shared]) -> None:
        """From the columns' totals (`step` in stage 23) to row scales."""
        m.submodules.scales = scales = RowScales(self.accelerator)
        recip = self.table(m, isa.LoadTarget.RECIP, 256, 16, 1)
        row, started = Signal(16, reset_less=True), self.control.i.valid & self.control.i.ready
        m.d.comb += [
            scales.capture.eq(step.valid & ~step.measure & step.last & (now.op == isa.VectorOp.SOFTMAX)),
            scales.m2.eq(now.m),
            scales.n2.eq(now.n),
            recip.index[0].eq(scales.index),
            scales.value.eq(recip.value[0]),
            self.row_scales.valid.eq(scales.valid),
            self.row_scales.row.eq(row),
            self.row_scales.scales.eq(scales.scales),
        ]
        m.d.comb += [scales.totals[c].eq(column.softmax_total) for c, column in enumerate(columns)]
        with m.If(started):
            m.d.sync += row.eq(self.control.i.payload.param)
        with m.Elif(scales.valid):
            m.d.sync += row.eq(row + 1)

    def maxima(self, m: Module, now: data.View, step: data.View, columns: list[Shared]) -> None:
        """The memory of row maxima, and its row for the tile whose first step comes to stage 7 next."""
        a = self.accelerator
        m.submodules.row_maxima = rows = memory.Memory(
            shape=row_maxima_layout(a).size, depth=a.row_maxima, init=[]
        )
        write, read = rows.write_port(), rows.read_port()
        row, taken = Signal(16, reset_less=True), Signal()
        m.d.comb += [
            write.en.eq(self.row_maxima.valid),
            write.addr.eq(self.row_maxima.row),
            write.data.eq(self.row_maxima.maxima),
            read.addr.eq(row),
            taken.eq(step.valid & step.first & now.measured),
        ]
        maxima = data.View(row_maxima_layout(a), read.data)
        for c, column in enumerate(columns):
            m.d.comb += [column.taken.eq(taken), column.maximum.eq(maxima[c])]
        with m.If(self.control.i.valid & self.control.i.ready):
            m.d.sync += row.eq(self.control.i.payload.index)
        with m.Elif(taken):
            m.d.sync += row.eq(row + 1)

    def compactor(self, m: Module, now: data.View, step: data.View, columns: list[Shared]) -> None:
        """From the columns' comparisons (`step` in stage 21) to the index memory."""
        m.submodules.compactor = compactor = Compactor(self.accelerator)
        connect(m, flipped(self.index_write), compactor.entries)
        connect(m, flipped(self.register_write), compactor.count)
        m.d.comb += [
            self.compacting.eq(self.control.busy & (now.op == isa.VectorOp.COMPACT)),
            compactor.start.eq(self.control.i.valid & self.control.i.ready),
            compactor.capture.eq(step.valid & (now.op == isa.VectorOp.COMPACT)),
            compactor.kept.eq(Cat(column.kept for column in columns)),
            compactor.index.eq(now.index),
            compactor.positions.eq(now.positions),
            compactor.register.eq(now.count_register),
        ]
