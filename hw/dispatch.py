"""Dispatch: instructions in program order to the queues of the engines, and from there in the order of semaphores."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..arch import isa
from ..arch.accelerator import Accelerator
from .decode import STORED_BITS, instruction_layout
from .delay import delayed
from .operands import REGISTER_VALUES, Operands
from .ports import EngineSignature
from .queue import Queue
from .semaphores import Semaphores, foreign_waits

__all__ = ["QUEUE", "Dispatch"]

QUEUE = 4
"""Instructions that wait for each engine."""


class Dispatch(wiring.Component):
    """Runs a program: `start` with `entry` begins, `end` is high for one cycle when END is reached and all is done.

    The instruction at `read_index` must be on `instruction` in the next cycle; one is dispatched per cycle. An illegal
    instruction (`illegal` while it stays) is not dispatched: an unknown opcode or enumeration value, a semaphore of
    another consumer, a transfer of no rows, or none at all (beyond `count`); or it does not start, because of what its
    operand slots make of it. `illegal_index` is its number; `dispatched` counts instructions of this run. With `halt` nothing starts. Each engine's instructions that have not ended are in flight.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        super().__init__(
            {
                "start": In(1),
                "entry": In(17),
                "count": In(17),
                "halt": In(1),
                "end": Out(1),
                "illegal": Out(1),
                "illegal_index": Out(17),
                "index": Out(17),
                "registers": In(REGISTER_VALUES),
                "dispatched": Out(32),
                "read_index": Out(17),
                "instruction": In(STORED_BITS),
                **{e.name.lower(): In(EngineSignature(isa.Opcode[e.name])) for e in isa.Engine},
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.semaphores = semaphores = Semaphores(self._accelerator)
        running, advance = Signal(), Signal()
        common = self._view(isa.Opcode.END)
        legal, accepted, ended = Signal(), Signal(), Signal()
        m.d.comb += [
            advance.eq(accepted & running & ~self.halt),
            self.read_index.eq(Mux(self.start, self.entry, self.index + advance)),
            self.illegal.eq(running & ~legal),
            self.illegal_index.eq(self.index),
            self.end.eq(running & legal & ended & ~self.halt),
            semaphores.clear.eq(self.start),
        ]
        m.d.sync += [self.index.eq(self.read_index), self.dispatched.eq(self.dispatched + advance)]
        with m.If(self.start):
            m.d.sync += [running.eq(1), self.dispatched.eq(0)]
        with m.Elif(self.end | self.halt):
            m.d.sync += running.eq(0)

        idle = []
        for engine in isa.Engine:
            opcode = isa.Opcode[engine.name]
            chosen = Signal(name=f"{engine.name.lower()}_chosen")
            m.d.comb += chosen.eq((common.opcode == opcode) & (self.index < self.count))
            ready, empty = self._engine(m, engine, advance & chosen, semaphores)
            idle.append(empty)
            with m.If(chosen):
                m.d.comb += [legal.eq(self._legal(opcode, engine)), accepted.eq(legal & ready)]
        with m.If((common.opcode == isa.Opcode.END) & (self.index < self.count)):
            m.d.comb += [legal.eq(1), ended.eq(Cat(idle).all())]
        return m

    def _engine(self, m: Module, engine: isa.Engine, put, semaphores: Semaphores):
        """An engine's queue, which takes the instruction with `put`, and its way into the engine; returns whether the
        queue has room and whether nothing is in flight."""
        name, opcode = engine.name.lower(), isa.Opcode[engine.name]
        port, layout = getattr(self, name), instruction_layout(opcode)
        entry = data.StructLayout({"instruction": layout, "index": len(self.index)})
        m.submodules[f"{name}_queue"] = queue = Queue(entry, QUEUE)
        m.submodules[f"{name}_operands"] = operands = Operands(opcode)
        head = queue.o.payload.instruction
        start, in_flight = Signal(name=f"{name}_start"), Signal(6, name=f"{name}_in_flight")
        m.d.comb += [
            queue.i.payload.instruction.eq(self.instruction),
            queue.i.payload.index.eq(self.index),
            queue.i.valid.eq(put),
            queue.o.ready.eq(start),
            operands.i.payload.eq(head),
            operands.i.valid.eq(queue.o.valid),
            operands.enable.eq(semaphores.ok[engine] & ~self.halt),
            operands.values.eq(self.registers),
            port.i.payload.eq(operands.o.payload),
            port.i.valid.eq(operands.o.valid),
            operands.o.ready.eq(port.i.ready),
            port.halt.eq(self.halt),
            start.eq(port.i.valid & port.i.ready),
            semaphores.start[engine].eq(start),
            semaphores.done[engine].eq(port.done),
            getattr(semaphores, f"wait_{int(engine)}").eq(head.wait),
            getattr(semaphores, f"signal_{int(engine)}").eq(port.done_signal),
        ]
        m.d.sync += in_flight.eq(in_flight + put - port.done)
        illegal = delayed(m, operands.illegal, 1, reset_less=False)
        with m.If(illegal):
            m.d.comb += [self.illegal.eq(1), self.illegal_index.eq(queue.o.payload.index)]
        return queue.i.ready, in_flight == 0

    def _named(self, opcode: isa.Opcode, fields, name: str):
        """Whether an operand slot adds to the field `name`."""
        return Cat(fields[f"{slot}_field"] == isa.slot(opcode, name) for slot in isa.SLOTS).any()

    def _view(self, opcode: isa.Opcode):
        """`instruction` as one of `opcode`."""
        layout = instruction_layout(opcode)
        return data.View(layout, self.instruction[: layout.size])

    def _legal(self, opcode: isa.Opcode, engine: isa.Engine):
        """Whether `instruction` is a legal one of its opcode."""
        fields = self._view(opcode)
        legal = (fields.wait & foreign_waits(engine)) == 0
        for field in isa.fields(opcode):
            value = getattr(fields, field.name)
            if field.kind is not None and len(field.kind) < 1 << field.bits:
                legal &= Cat(value == int(member) for member in field.kind).any()
            if field.name == "rows":
                legal &= (value != 0) | self._named(opcode, fields, "rows")
            if field.name == "item_rows":
                legal &= (value != 0) | ~fields.gather | self._named(opcode, fields, "item_rows")
        return legal
