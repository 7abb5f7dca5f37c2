"""The vector engine's control: walks tiles, passes and steps, and asks for their reads."""

from __future__ import annotations

from amaranth.hdl import C, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2

from ...arch import isa
from ...arch.accelerator import Accelerator
from ...arch.options import missing
from ..decode import instruction_layout
from ..delay import delayed
from ..ports import ROW_BITS, EngineSignature, IndexRead
from .gather import Gatherer
from .prepare import prepared
from .steps import (
    GATHER_LATENCY,
    LAYERNORM_LATENCY,
    MOMENTS_LATENCY,
    MOMENTS_WAIT,
    QUEUE_STEPS,
    SOFTMAX_LATENCY,
    slot_bits,
    step_layout,
)

__all__ = ["Sequencer", "ticket_layout"]


def ticket_layout(accelerator: Accelerator) -> data.StructLayout:
    """Where the output of a step goes: a row, the slot in its words, and the columns that are positions."""
    return data.StructLayout(
        {"row": ROW_BITS, "slot": slot_bits(accelerator), "columns": accelerator.columns}
    )


class Sequencer(wiring.Component):
    """Takes an instruction and issues its steps, at most one a cycle.

    A pass is all steps of a tile. LAYERNORM and SOFTMAX have two: the first measures, the second writes. SOFTMAX
    alternates them, and has the second alone with `measured`; LAYERNORM measures a tile ahead, so that the moments of one tile are computed while another
    is written. With `summed` it has the second alone, and `prepare` asks for the row moments of the next tile. The others only have the second; a step with a second operand takes two reads. GATHER's passes are
    over one position each; COMPACT has one step for each tile and writes nothing to the scratchpad.

    `instruction` is changed by `prepared`, and stable from the cycle of `setup` on. A read is in a register from the cycle
    after its step was issued until it is granted; `step` and `ticket` belong to the read that is granted in this cycle.
    Steps are not issued while QUEUE_STEPS of
    them wait to be written (`written`); the last of a pass until the unit that treats columns one by one (moments,
    row scales, COMPACT) can take another tile; LAYERNORM's last tile, with `summed` each one, until its moments are complete, and a position
    of GATHER until its row is known.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        super().__init__(
            {
                "control": Out(EngineSignature(isa.Opcode.VECTOR)),
                "instruction": Out(instruction_layout(isa.Opcode.VECTOR)),
                "setup": Out(1),
                "entries": Out(IndexRead()),
                "read_valid": Out(1),
                "read_ready": In(1),
                "read_row": Out(ROW_BITS),
                "step": Out(step_layout(accelerator)),
                "ticket": Out(ticket_layout(accelerator)),
                "ticket_valid": Out(1),
                "halted": Out(1),
                "written": In(1),
                "write_stalled": In(1),
                **({"prepare": Out(1)} if accelerator.row_moments else {}),
            }
        )

    def elaborate(self, platform):
        m = Module()
        now = Signal.like(self.instruction, name="now", reset_less=True)
        m.d.comb += self.instruction.eq(now)
        m.d.sync += self.halted.eq(self.control.halt)
        self.busy, self.issuing = Signal(), Signal()
        self.measure, self.at_residual = Signal(), Signal()
        self.number, self.read_number, self.at_first = Signal(13), Signal(13), Signal(init=1)
        self.valid_last = Signal(13)
        self.valid_before, self.padded_before, self.single = Signal(13), Signal(13), Signal()
        """The numbers before a pass's last one: `valid_last`, and that with all slots of SOFTMAX; whether there is none."""
        self.fresh, self.more = Signal(), Signal()
        """Before the end of the first pass; whether there is another tile to measure after this one."""
        self.to_measure, self.to_write = Signal(18), Signal(18)
        self.pending = Signal(range(QUEUE_STEPS + 1))
        self.counting = Signal(range(self.accelerator.columns + SOFTMAX_LATENCY + 1))
        self.counts, self.counts_long = Signal(), Signal()
        """Whether `counting` is above 0, and above SOFTMAX_LATENCY."""
        without = missing(self.accelerator, isa.Opcode.VECTOR, "op")
        names = {isa.VectorOp[n.upper()]: n for n in ("layernorm", "softmax", "compact", "gather")}
        for op, name in names.items():
            setattr(self, name, C(0) if op in without else Signal(name=name))
        self.summed = now.summed & self.layernorm if self.accelerator.row_moments else C(0)
        """LAYERNORM without measuring."""
        self.issued, self.end_of_pass = Signal(), Signal()  # the latter is a register beside `number`
        issued_step = self.issued & ~self.at_residual
        self.last_tile = Signal()
        """Of what is written; GATHER: the last position."""

        layout = {
            "step": step_layout(self.accelerator),
            "ticket": ticket_layout(self.accelerator),
            "ticket_valid": 1,
            "row": ROW_BITS,
            "timed": 1,
        }
        self.following = Signal(data.StructLayout(layout))
        """The read that is issued next; `timed`: `counting` starts with its grant."""
        self.addresses(m, issued_step)
        blocked = self.requests(m)
        self.loops(m, issued_step)
        self.completion(m, issued_step)

        control = self.control
        done = self.busy & ~self.setup & ~self.issuing & ~self.pending.any() & ~self.counts
        m.d.comb += [
            control.i.ready.eq(~self.busy & ~self.halted),
            control.busy.eq(self.busy),
            control.done.eq(done),
            control.done_signal.eq(now.signal),
            control.done_tag.eq(now.tag),
        ]
        m.d.sync += control.stalled.eq(
            self.busy & (blocked | (self.read_valid & ~self.read_ready) | self.write_stalled)
        )
        with m.If(control.i.valid & control.i.ready):
            m.d.sync += [now.eq(control.i.payload), self.busy.eq(1), self.setup.eq(1)]
            m.d.sync += [now[name].eq(value) for name, value in prepared(control.i.payload).items()]
            for op in names.keys() - without:
                m.d.sync += getattr(self, names[op]).eq(control.i.payload.op == op)
        with m.If(done):
            m.d.sync += self.busy.eq(0)
        return m

    def addresses(self, m: Module, issued_step: Value) -> None:
        """Rows and slots of the current step, and the step itself."""
        now, a, following = self.instruction, self.accelerator, self.following
        step, ticket = following.step, following.ticket
        slot, vector_log2 = slot_bits(a), ceil_log2(a.vector)
        measured, written = Signal(ROW_BITS), Signal(ROW_BITS)
        self.residual_row, self.dst_row = Signal(ROW_BITS), Signal(ROW_BITS)
        self.measured_row, self.written_row = measured, written
        self.measured_bank, self.written_bank = Signal(), Signal()
        self.dst_column = Signal(ceil_log2(a.columns))

        wide = Mux(self.at_residual, now.residual_wide, now.src_wide)
        place = Mux(wide, self.read_number << 1, self.read_number)
        rows, column = self.gathered(m, issued_step)
        first = Mux(self.gather, rows, Mux(self.measure, measured, written))
        base = Mux(self.at_residual, self.residual_row, first)
        target = Mux(now.dst_wide, self.number << 1, self.number)
        tail = Signal(a.vector)
        rest = (now.channels - 1)[:vector_log2] if vector_log2 else C(0, 1)
        empty = Signal(a.vector)
        """Slots of keys that belong to no token."""
        for first_key in range(0, a.depth, a.vector):
            if first_key + a.vector > a.tokens_per_word:
                with m.If(self.number % (a.depth // a.vector) == first_key // a.vector):
                    m.d.comb += empty.eq(
                        sum((first_key + i >= a.tokens_per_word) << i for i in range(a.vector))
                    )
        whole, some = self.number < self.valid_last, self.number == self.valid_last
        m.d.comb += [
            tail[0].eq(1),
            *(tail[i].eq(rest >= i) for i in range(1, a.vector)),
            following.row.eq(base + (place >> slot)),
            step.valid.eq(~self.at_residual),
            step.residual.eq(self.at_residual),
            step.measure.eq(self.measure | self.compact),
            step.first.eq(self.at_first),
            step.last.eq(self.end_of_pass),
            step.bank.eq(Mux(self.measure, self.measured_bank, self.written_bank)),
            step.wide.eq(wide),
            step.column.eq(Mux(self.gather, column, 0)),
            step.slot.eq(place[:slot]),
            step.present.eq(Mux(whole, -1, Mux(some, tail, 0)) & ~Mux(self.softmax, empty, 0)),
            following.ticket_valid.eq(step.valid & ~step.measure),
            following.timed.eq(
                step.valid & self.end_of_pass & Mux(self.measure, self.layernorm, self.softmax | self.compact)
            ),
            ticket.row.eq(self.dst_row + (target >> slot)),
            ticket.slot.eq(target[:slot]),
            *(
                ticket.columns[c].eq(Mux(self.gather, self.dst_column == c, self.to_write > c))
                for c in range(a.columns)
            ),
        ]

    def gathered(self, m: Module, issued_step: Value) -> tuple[Value, Value]:
        """GATHER's input: a position's first row, and its column."""
        if not self.accelerator.index_rows:
            return C(0), C(0)
        m.submodules.gatherer = gatherer = Gatherer(self.accelerator)
        connect(m, flipped(self.entries), gatherer.entries)
        m.d.comb += [
            gatherer.start.eq(self.setup),
            gatherer.first.eq(self.at_first),
            gatherer.take.eq(issued_step & gatherer.first),
            gatherer.index.eq(self.instruction.index),
            gatherer.src.eq(self.instruction.src),
            gatherer.src_stride.eq(self.instruction.src_stride),
        ]
        return gatherer.row, gatherer.column

    def requests(self, m: Module) -> Value:
        """The register of the read that is asked for; returns whether the next step must wait for what came before it."""
        incomplete = self.layernorm & ~self.measure & self.last_tile
        if self.accelerator.row_moments:
            incomplete = incomplete | self.summed
        held, waiting, now = Signal(), Signal(), Signal(self.following.shape(), name="now", reset_less=True)
        with m.If(self.end_of_pass & self.layernorm & self.measure):
            m.d.comb += held.eq(self.counts)
        with m.Elif(self.end_of_pass & ((self.softmax & ~self.measure) | self.compact)):
            m.d.comb += held.eq(self.counts_long)
        with m.Elif(self.at_first & (self.gather | incomplete)):
            m.d.comb += held.eq(self.counts)
        blocked = self.issuing & (held | (~self.measure & self.pending[-1]))
        granted, self.stands = self.read_valid & self.read_ready, Signal()
        """The register keeps its read for another cycle."""
        m.d.comb += [
            self.stands.eq(waiting & ~granted),
            self.issued.eq(self.issuing & ~blocked & ~self.stands),
            self.read_valid.eq(waiting),
            self.read_row.eq(now.row),
            self.step.eq(now.step),
            self.step.valid.eq(granted & now.step.valid),
            self.step.residual.eq(granted & now.step.residual),
            self.ticket.eq(now.ticket),
            self.ticket_valid.eq(granted & now.ticket_valid),
        ]
        self.held_count = self.stands & now.timed
        m.d.sync += waiting.eq((self.stands | self.issued) & ~self.halted)
        with m.If(~self.stands):
            m.d.sync += now.eq(self.following)
        return blocked

    def loops(self, m: Module, issued_step: Value) -> None:
        """Setup, and what follows each read that is issued."""
        now, a = self.instruction, self.accelerator
        vector_log2, depth_log2 = ceil_log2(a.vector), ceil_log2(a.depth)
        chunks = (now.channels + (a.depth - 1)) >> depth_log2
        measures = self.softmax & ~now.measured if a.row_maxima else self.softmax
        two_passes = (self.layernorm & ~self.summed if a.row_moments else self.layernorm) | measures
        pads = self.softmax & ~self.measure
        before_last, fits = Mux(pads, self.padded_before, self.valid_before), now.channels <= a.vector
        unit = Mux(self.gather, 1, a.columns)
        with m.If(self.setup):
            m.d.sync += [
                self.setup.eq(0),
                self.issuing.eq(1),
                self.measure.eq(two_passes),
                self.at_residual.eq(now.residual),
                self.number.eq(0),
                self.at_first.eq(1),
                self.read_number.eq(0),
                self.valid_last.eq((now.channels - 1) >> vector_log2),
                self.valid_before.eq((now.channels - (1 + a.vector)) >> vector_log2),
                self.single.eq(fits),
                self.end_of_pass.eq(fits & ~(self.softmax & ~two_passes)),  # empty slots are steps, too
                self.fresh.eq(1),
                self.more.eq(now.positions > a.columns),
                self.last_tile.eq(now.positions <= unit),
                self.padded_before.eq((chunks << (depth_log2 - vector_log2)) - 2),
                self.to_measure.eq(Mux(two_passes, now.positions, 0)),
                self.to_write.eq(now.positions),
                self.measured_row.eq(now.src),
                self.written_row.eq(now.src),
                self.residual_row.eq(now.residual_row),
                self.dst_row.eq(now.dst),
                self.dst_column.eq(0),
                self.measured_bank.eq(0),
                self.written_bank.eq(0),
            ]
        with m.If(self.issued):
            m.d.sync += self.at_residual.eq(now.residual & ~self.at_residual)
        with m.If(issued_step):
            m.d.sync += [self.number.eq(self.number + 1), self.at_first.eq(self.end_of_pass)]
            m.d.sync += self.end_of_pass.eq(self.number == before_last)
            with m.If(self.number < self.valid_last):
                m.d.sync += self.read_number.eq(self.number + 1)
            with m.If(self.end_of_pass):
                m.d.sync += [self.number.eq(0), self.read_number.eq(0), self.fresh.eq(0)]
                m.d.sync += self.end_of_pass.eq(self.single & ~(self.softmax & (self.measure | ~two_passes)))
                self.next_pass(m, unit)

    def next_pass(self, m: Module, unit: Value) -> None:
        """What follows the last step of a pass."""
        now = self.instruction
        columns = self.accelerator.columns
        column_last = self.dst_column == columns - 1
        with m.If(self.measure):
            m.d.sync += [
                self.measured_row.eq(self.measured_row + now.src_stride),
                self.measured_bank.eq(~self.measured_bank),
                self.to_measure.eq(Mux(self.more, self.to_measure - columns, 0)),
                self.more.eq(self.to_measure > 2 * columns),
                self.measure.eq(self.layernorm & self.fresh & self.more),
            ]
        with m.Else():
            m.d.sync += [
                self.written_row.eq(self.written_row + now.src_stride),
                self.written_bank.eq(~self.written_bank),
                self.residual_row.eq(self.residual_row + now.residual_stride),
                self.dst_column.eq(Mux(column_last, 0, self.dst_column + 1)),
                self.to_write.eq(Mux(self.last_tile, 0, self.to_write - unit)),
                self.last_tile.eq(self.to_write <= unit << 1),
                self.measure.eq(self.to_measure != 0),
                self.issuing.eq(~self.last_tile),
            ]
            with m.If(~self.gather | column_last):
                m.d.sync += self.dst_row.eq(self.dst_row + now.dst_stride)

    def preparation(self, m: Module, issued_step: Value) -> Value:
        """Asks for row moments: of the first tile MOMENTS_WAIT cycles after the setup, of another with the first step of the tile
        before. Returns whether the cycles until they are complete begin."""
        setup = self.summed & self.setup
        following = self.summed & issued_step & self.at_first & ~self.last_tile
        m.d.comb += self.prepare.eq(following | delayed(m, setup, MOMENTS_WAIT, reset_less=False))
        return setup | following

    def completion(self, m: Module, issued_step: Value) -> None:
        """Counts of the steps to be written and of the cycles until what a step needs is complete."""
        columns, put = self.accelerator.columns, self.issued & self.following.ticket_valid
        begins = self.preparation(m, issued_step) if self.accelerator.row_moments else None
        with m.If(put & ~self.written):
            m.d.sync += self.pending.eq(self.pending + 1)
        with m.If(~put & self.written):
            m.d.sync += self.pending.eq(self.pending - 1)
        with m.If(self.issued & self.following.timed):
            m.d.sync += [
                self.counting.eq(columns + Mux(self.layernorm, LAYERNORM_LATENCY, SOFTMAX_LATENCY)),
                self.counts.eq(1),
                self.counts_long.eq(1),
            ]
        if begins is not None:
            with m.Elif(begins):
                cycles = columns + MOMENTS_LATENCY + Mux(self.setup, MOMENTS_WAIT, 0)
                m.d.sync += [self.counting.eq(cycles), self.counts.eq(1)]
        with m.Elif(self.gather & (self.setup | (issued_step & self.at_first))):
            m.d.sync += [self.counting.eq(GATHER_LATENCY), self.counts.eq(1), self.counts_long.eq(0)]
        with m.Elif(self.counts & ~self.held_count):
            m.d.sync += [
                self.counting.eq(self.counting - 1),
                self.counts.eq(self.counting > 1),
                self.counts_long.eq(self.counting > SOFTMAX_LATENCY + 1),
            ]
