"""Dispatch: instructions in program order to the queues of the engines, and from there in the order of semaphores."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..arch import isa
from ..arch.accelerator import Accelerator
from ..arch.options import needs
from .decode import stored_bits, stored_layout
from .delay import delayed
from .operands import REGISTER_VALUES, Operands
from .ports import EngineSignature
from .queue import Queue
from .semaphores import Semaphores, foreign_waits

__all__ = ["FIRST", "QUEUE", "Dispatch"]

FIRST = 7
"""Cycles from a run's start to its first instruction."""
QUEUE = 4
"""Instructions that wait for each engine, behind the one that is next."""


class Dispatch(wiring.Component):
    """Runs a program: `start` with `entry` begins, `end` is high for one cycle when END is reached and all is done.

    The instruction at `read_index` must be on `instruction` in the next cycle; one is dispatched in every second cycle, the first
    one FIRST cycles after `start`; it goes into its engine a cycle after it could. An illegal
    instruction (`illegal` while it stays) is not dispatched: an unknown opcode or enumeration value, a semaphore of
    another consumer, a transfer of no rows, one that needs what the machine does without (`arch.options`), or none at all
    (beyond `count`); or it does not start, because of what its operand slots make of it. `illegal_index` is its number; `dispatched` counts instructions of this run. Nothing starts from the cycle after `halt`. Each engine's instructions that have not ended are in flight.
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
                "instruction": In(stored_bits(accelerator)),
                **{e.name.lower(): In(EngineSignature(isa.Opcode[e.name])) for e in isa.Engine},
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.semaphores = semaphores = Semaphores(self._accelerator)
        start, halt = (delayed(m, value, 1, reset_less=False) for value in (self.start, self.halt))
        entry = delayed(m, self.entry, 1)
        running, advance, moves = Signal(), Signal(), Signal()
        number = Signal(17)  # of what the instruction memory shows
        raw, raw_index, raw_valid = Signal.like(self.instruction, reset_less=True), Signal(17), Signal()
        self.word, valid = Signal.like(self.instruction, reset_less=True), Signal()
        legal, ends, slots = (Signal(name=name) for name in ("legal", "ends", "slots"))
        chosen, can = Signal(len(isa.Engine), name="chosen"), Signal()
        m.d.comb += [
            self.read_index.eq(number),
            self.illegal.eq(valid & ~legal),
            self.illegal_index.eq(self.index),
            semaphores.clear.eq(start),
        ]
        # What wide registers wait for is a register itself: an instruction moves in every second cycle at most.
        m.d.sync += [
            advance.eq(can),
            moves.eq(can | (~valid & ~moves & ~start)),
            self.dispatched.eq(self.dispatched + advance),
        ]
        decoded = self._decoded(m, raw, raw_index < self.count)
        with m.If(moves):
            m.d.sync += [raw.eq(self.instruction), raw_index.eq(number), raw_valid.eq(running)]
            m.d.sync += [self.word.eq(raw), self.index.eq(raw_index), valid.eq(raw_valid)]
            m.d.sync += number.eq(number + 1)
            m.d.sync += [signal.eq(decoded[signal.name]) for signal in (legal, ends, slots, chosen)]
        with m.If(start):
            m.d.sync += [running.eq(1), self.dispatched.eq(0), number.eq(entry)]
        with m.Elif(self.end | halt):
            m.d.sync += [running.eq(0), raw_valid.eq(0), valid.eq(0), moves.eq(0), advance.eq(0)]

        ready, idle = [], []
        for engine in isa.Engine:
            put = Signal(name=f"{engine.name.lower()}_put")
            m.d.sync += put.eq(can & chosen[engine])
            one_ready, one_idle = self._engine(m, engine, put, slots, semaphores, halt)
            ready.append(one_ready & chosen[engine])
            idle.append(one_idle)
        m.d.comb += can.eq(valid & legal & ~advance & Cat(ready).any() & ~halt)
        m.d.sync += self.end.eq(valid & ends & Cat(idle).all() & ~halt & ~self.end)
        return m

    def _decoded(self, m: Module, word, exists) -> dict:
        """What is known of an instruction before its turn: whether it is legal, END, and has operand slots, and its engine.
        Two steps: `word` must be there for two cycles."""
        opcode = self._view(isa.Opcode.END, word).opcode
        views = {engine: self._view(isa.Opcode[engine.name], word) for engine in isa.Engine}
        engines = {e: delayed(m, exists & (opcode == isa.Opcode[e.name]), 1) for e in isa.Engine}
        legal = [engines[e] & delayed(m, self._legal(views[e], e), 1) for e in isa.Engine]
        slots = [engines[e] & delayed(m, self._slots(views[e]), 1) for e in isa.Engine]
        is_end = delayed(m, exists & (opcode == isa.Opcode.END), 1)
        return {
            "legal": is_end | Cat(legal).any(),
            "ends": is_end,
            "slots": Cat(slots).any(),
            "chosen": Cat(engines.values()),
        }

    def _engine(self, m: Module, engine: isa.Engine, put, slots, semaphores: Semaphores, halt):
        """An engine's queue, which takes the instruction with `put`, and its way into the engine; returns whether the
        queue has room and whether nothing is in flight."""
        name, opcode = engine.name.lower(), isa.Opcode[engine.name]
        port, layout = getattr(self, name), stored_layout(opcode, self._accelerator)
        late = {"slots": 1, "index": len(self.index)} if self._accelerator.operand_slots else {}
        entry = data.StructLayout({"instruction": layout, **late})
        m.submodules[f"{name}_queue"] = queue = Queue(entry, QUEUE)
        head, waiting = Signal(entry, name=f"{name}_head", reset_less=True), Signal(name=f"{name}_waiting")
        start, in_flight = Signal(name=f"{name}_start"), Signal(6, name=f"{name}_in_flight")
        m.d.comb += [
            queue.i.payload.instruction.eq(self.word),
            queue.i.valid.eq(put),
            queue.o.ready.eq(~waiting | start),
            port.i.valid.eq(start),
            port.halt.eq(halt),
            semaphores.start[engine].eq(start),
            semaphores.done[engine].eq(port.done),
            getattr(semaphores, f"wait_{int(engine)}").eq(head.instruction.wait),
            getattr(semaphores, f"signal_{int(engine)}").eq(port.done_signal),
        ]
        m.d.sync += [in_flight.eq(in_flight + put - port.done)]
        with m.If(queue.o.ready):
            m.d.sync += [waiting.eq(queue.o.valid), head.eq(queue.o.payload)]
        enable = semaphores.ok[engine] & ~halt
        if late:
            m.d.comb += [queue.i.payload.slots.eq(slots), queue.i.payload.index.eq(self.index)]
            offered = self._operands(m, opcode, port, head, waiting, enable, start)
        else:
            offered = waiting & enable
            m.d.comb += [
                port.i.payload[field].eq(head.instruction[field]) for field, _ in layout if field != "slots"
            ]
        # An engine that is ready stays so until it takes an instruction.
        m.d.sync += start.eq(offered & port.i.ready & ~start)
        return queue.i.ready, in_flight == 0

    def _operands(self, m: Module, opcode: isa.Opcode, port, head, waiting, enable, start):
        """From an engine's `head` into the engine with operand slots added; returns whether it is offered."""
        m.submodules[f"{opcode.name.lower()}_operands"] = operands = Operands(opcode)
        m.d.comb += [
            operands.i.payload.eq(head.instruction),
            operands.i.valid.eq(waiting),
            operands.slots.eq(head.slots),
            operands.enable.eq(enable),
            operands.values.eq(self.registers),
            port.i.payload.eq(operands.o.payload),
            operands.o.ready.eq(start),
        ]
        illegal = delayed(m, operands.illegal, 1, reset_less=False)
        with m.If(illegal):
            m.d.comb += [self.illegal.eq(1), self.illegal_index.eq(head.index)]
        return operands.o.valid

    def _slots(self, fields):
        """Whether an operand slot names a field."""
        if not self._accelerator.operand_slots:
            return fields.slots
        return Cat(fields[f"{slot}_field"] for slot in isa.SLOTS).any()

    def _named(self, opcode: isa.Opcode, fields, name: str):
        """Whether an operand slot adds to the field `name`."""
        if not self._accelerator.operand_slots:
            return 0
        return Cat(fields[f"{slot}_field"] == isa.slot(opcode, name) for slot in isa.SLOTS).any()

    def _view(self, opcode: isa.Opcode, word):
        """`word` as an instruction of `opcode`."""
        layout = stored_layout(opcode, self._accelerator)
        return data.View(layout, word[: layout.size])

    def _legal(self, fields, engine: isa.Engine):
        """Whether an instruction is a legal one of its opcode."""
        opcode = isa.Opcode[engine.name]
        legal = (fields.wait & foreign_waits(engine)) == 0
        for field in isa.fields(opcode):
            if field.kind is not None and len(field.kind) < 1 << field.bits:
                legal &= Cat(fields[field.name] == int(member) for member in field.kind).any()
            if field.name == "rows":
                legal &= (fields.rows != 0) | self._named(opcode, fields, "rows")
            if field.name == "item_rows":
                legal &= (fields.item_rows != 0) | ~fields.gather | self._named(opcode, fields, "item_rows")
        if not self._accelerator.operand_slots:
            legal &= ~fields.slots
        for _, of, name, value in needs(self._accelerator):
            if of == opcode and value is not None:
                legal &= fields[name] != int(value)
        return legal
