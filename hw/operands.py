"""Count registers, and the operand slots through which instructions take numbers from them."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..arch import isa
from .decode import instruction_layout
from .ports import LoadPort, RegisterWrite

__all__ = ["OPERAND_CYCLES", "REGISTER_VALUES", "Operands", "Registers"]

REGISTER_VALUES = data.ArrayLayout(isa.REGISTER_BITS, isa.REGISTERS)
OPERAND_CYCLES = 4
"""By which an instruction with operand slots starts later than one without."""


class Registers(wiring.Component):
    """The count registers; LOAD and the vector engine write them. A write shows in the next cycle; no reset clears it."""

    def __init__(self, accelerator):
        super().__init__(
            {"load": In(LoadPort(accelerator)), "write": In(RegisterWrite()), "values": Out(REGISTER_VALUES)}
        )

    def elaborate(self, platform):
        m = Module()
        registers = Array(
            Signal(isa.REGISTER_BITS, name=f"register_{i}", reset_less=True) for i in range(isa.REGISTERS)
        )
        m.d.comb += [self.values.eq(Cat(registers)), self.load.ready.eq(1)]
        with m.If(self.load.valid):
            m.d.sync += registers[self.load.row[: (isa.REGISTERS - 1).bit_length()]].eq(self.load.data)
        with m.If(self.write.valid):
            m.d.sync += registers[self.write.register].eq(self.write.value)
        return m


class Operands(wiring.Component):
    """The head of an engine's queue on its way into the engine, with its operand slots added.

    Without slots it passes in the same cycle. With slots it is offered OPERAND_CYCLES after the first cycle with
    `enable`: a slot per cycle, from the register's value of that cycle on. `illegal` is high (and nothing passes)
    where a slot names no field, a sum exceeds its field, or is below the least value of a field that a slot names.
    """

    def __init__(self, opcode: isa.Opcode):
        self.opcode = opcode
        layout = instruction_layout(opcode)
        super().__init__(
            {
                "i": In(stream.Signature(layout)),
                "enable": In(1),
                "o": Out(stream.Signature(layout)),
                "values": In(REGISTER_VALUES),
                "illegal": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        head, fields = self.i.payload, isa.operands(self.opcode)
        slots = [
            tuple(head[f"{slot}_{part}"] for part in ("field", "register", "shift")) for slot in isa.SLOTS
        ]
        needed = Signal()
        step = Signal(range(OPERAND_CYCLES + 1))
        finished, bad = Signal(), Signal()
        m.d.comb += [
            needed.eq(Cat(field != 0 for field, _, _ in slots).any()),
            finished.eq(step == OPERAND_CYCLES),
            self.o.valid.eq(self.i.valid & self.enable & (~needed | (finished & ~self.illegal))),
            self.i.ready.eq(self.o.valid & self.o.ready),
        ]
        with m.If(self.i.valid & self.enable & needed & ~finished):
            m.d.sync += step.eq(step + 1)
        with m.Elif(self.i.ready):
            m.d.sync += step.eq(0)

        # The slot of this step: its amount is added in the next one.
        field, register, shift = (
            Array([*values, Const(0, len(values[0]))])[step] for values in zip(*slots, strict=True)
        )
        value = Signal(isa.REGISTER_BITS)
        rest = value & ((1 << shift) - 1)[: isa.REGISTER_BITS]
        amount, target = Signal(isa.REGISTER_BITS + 1, reset_less=True), Signal(6, reset_less=True)
        m.d.comb += value.eq(self.values[register])
        m.d.sync += [amount.eq((value >> shift) + (rest != 0)), target.eq(field)]

        sums = {f.name: Signal(f.bits, name=f.name, reset_less=True) for f in fields}
        chosen = Array([Const(0, 1), *sums.values()])[Mux(target <= len(fields), target, 0)]
        total = Signal(max(isa.REGISTER_BITS + 1, *(f.bits for f in fields)) + 1)
        m.d.comb += total.eq(chosen + amount)
        with m.If(step == 0):
            m.d.sync += [*(register.eq(head[name]) for name, register in sums.items()), bad.eq(0)]
        with m.Else():
            for number, f in enumerate(fields, 1):
                with m.If((target == number) & ~finished):
                    m.d.sync += sums[f.name].eq(total)
                    with m.If(total > f.hi):
                        m.d.sync += bad.eq(1)
            with m.If((target > len(fields)) & ~finished):
                m.d.sync += bad.eq(1)

        m.d.comb += self.o.payload.eq(head)
        with m.If(needed):
            m.d.comb += [self.o.payload[name].eq(value) for name, value in sums.items()]
        zero = Cat(
            (sums[f.name] < f.least) & Cat(field == number for field, _, _ in slots).any()
            for number, f in enumerate(fields, 1)
            if f.least
        ).any()
        m.d.comb += self.illegal.eq(self.i.valid & self.enable & needed & finished & (bad | zero))
        return m
