"""Steps on their way to the scratchpad."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from ...arch.accelerator import Accelerator
from ..ports import WritePort
from .sequencer import ticket_layout
from .steps import QUEUE_STEPS

__all__ = ["Writer"]


class Writer(wiring.Component):
    """A queue of QUEUE_STEPS steps: tickets enter when a step is issued, outputs later in the same order.

    A write is requested two cycles after its output came, from a register, and holds until it is granted. The other side must
    not have more than QUEUE_STEPS steps between `ticket_valid` and `written`. `wide` and `halt`: codes of 16 bits;
    ask for nothing.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        super().__init__(
            {
                "ticket": In(ticket_layout(accelerator)),
                "ticket_valid": In(1),
                "outputs": In(
                    data.ArrayLayout(data.ArrayLayout(16, accelerator.vector), accelerator.columns)
                ),
                "outputs_valid": In(1),
                "wide": In(1),
                "halt": In(1),
                "written": Out(1),
                "stalled": Out(1),
                "write": Out(WritePort(accelerator)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        a, write = self.accelerator, self.write
        m.submodules.tickets = tickets = memory.Memory(shape=ticket_layout(a), depth=QUEUE_STEPS, init=[])
        m.submodules.outputs = outputs = memory.Memory(shape=self.outputs.shape(), depth=QUEUE_STEPS, init=[])
        issued, arrived, head = (Signal(range(QUEUE_STEPS), name=n) for n in ("issued", "arrived", "head"))
        waiting, some = Signal(range(QUEUE_STEPS + 1)), Signal()
        for queue, value, valid, place in (
            (tickets, self.ticket, self.ticket_valid, issued),
            (outputs, self.outputs, self.outputs_valid, arrived),
        ):
            port = queue.write_port()
            m.d.comb += [port.en.eq(valid), port.addr.eq(place), port.data.eq(value)]
            m.d.sync += place.eq(place + valid)
        places, values = (queue.read_port(domain="comb") for queue in (tickets, outputs))
        ticket, output = (
            Signal(ticket_layout(a), reset_less=True),
            Signal(self.outputs.shape(), reset_less=True),
        )
        held, take = Signal(), Signal()
        m.d.comb += [
            places.addr.eq(head),
            values.addr.eq(head),
            take.eq(some & (~held | write.ready)),
            write.valid.eq(held),
            self.written.eq(write.valid & write.ready),
            self.stalled.eq(write.valid & ~write.ready),
        ]
        m.d.sync += [
            head.eq(head + take),
            waiting.eq(waiting + self.outputs_valid - take),
            some.eq(self.outputs_valid | (waiting > take)),
            held.eq((take | (held & ~write.ready)) & ~self.halt),
        ]
        with m.If(~held | write.ready):
            m.d.sync += [ticket.eq(places.data), output.eq(values.data)]

        slots = a.depth // a.vector
        for c in range(a.columns):
            codes = [output[c][i] for i in range(a.vector)]
            narrow = Cat(code[:8] for code in codes)
            pair = Mux(self.wide, Cat(codes), Cat(narrow, narrow))
            m.d.comb += write.data.word_select(c, a.depth * 8).eq(pair.replicate(slots // 2))
            for slot in range(slots):
                here = Mux(self.wide, ticket.slot[1:] == slot >> 1, ticket.slot == slot)
                enabled = here & ticket.columns[c]
                m.d.comb += write.mask.word_select(c * slots + slot, a.vector).eq(enabled.replicate(a.vector))
        m.d.comb += write.row.eq(ticket.row)
        return m
