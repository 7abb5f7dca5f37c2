"""Count registers, and the operand slots through which instructions take numbers from them."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..arch import isa
from .decode import instruction_layout
from .delay import delayed
from .ports import LoadPort, RegisterWrite

__all__ = ["OPERAND_CYCLES", "REGISTER_VALUES", "Operands", "Registers"]

REGISTER_VALUES = data.ArrayLayout(isa.REGISTER_BITS, isa.REGISTERS)
OPERAND_CYCLES = 8
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

    Without `slots` it passes in the same cycle. With slots it is offered OPERAND_CYCLES after the first cycle with
    `enable`: a slot per cycle, with its register's value of the cycle after. `illegal` is high (and nothing passes)
    where a slot names no field, a sum exceeds its field, or is below the least value of a field that a slot names.
    """

    def __init__(self, opcode: isa.Opcode):
        self.opcode = opcode
        layout = instruction_layout(opcode)
        super().__init__(
            {
                "i": In(stream.Signature(layout)),
                "slots": In(1),
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
        needed = self.slots
        step = Signal(range(OPERAND_CYCLES + 1))
        finished, bad = Signal(), Signal()
        m.d.comb += [
            finished.eq(step == OPERAND_CYCLES),
            self.o.valid.eq(self.i.valid & self.enable & (~needed | (finished & ~self.illegal))),
            self.i.ready.eq(self.o.valid & self.o.ready),
        ]
        with m.If(self.i.valid & self.enable & needed & ~finished):
            m.d.sync += step.eq(step + 1)
        with m.Elif(self.i.ready):
            m.d.sync += step.eq(0)

        # The slot of this step; then its register's value, its amount, and the sum.
        field, register, shift = (
            Array([*values, Const(0, len(values[0]))])[step] for values in zip(*slots, strict=True)
        )
        s1_register = delayed(m, register, 1)
        s2_value = delayed(m, self.values[s1_register], 1)
        s2_shift = delayed(m, shift, 2)
        rest = s2_value & ((1 << s2_shift) - 1)[: isa.REGISTER_BITS]
        s3_amount = delayed(m, ((s2_value >> s2_shift) + (rest != 0))[: isa.REGISTER_BITS + 1], 1)
        s3_field = delayed(m, field, 3)

        # A sum is of the slot before if that has the same field, and so is too young to be found among the sums.
        sums = {f.name: Signal(f.bits, name=f.name, reset_less=True) for f in fields}
        bits = max(isa.REGISTER_BITS + 1, *(f.bits for f in fields)) + 1
        s4_amount = delayed(m, s3_amount, 1)
        s4_found = delayed(m, Array([Const(0, 1), *sums.values()])[s3_field], 1)
        s4_field = delayed(m, Mux(step >= 3, s3_field, 0), 1)
        s5_sum, s5_field = Signal(bits, reset_less=True), delayed(m, s4_field, 1)
        s4_sum = Mux(s4_field == s5_field, s5_sum, s4_found) + s4_amount
        m.d.sync += s5_sum.eq(s4_sum)
        exceeds = Cat(s5_sum > f.hi for f in fields)
        with m.If(step == 0):
            m.d.sync += [*(register.eq(head[name]) for name, register in sums.items()), bad.eq(0)]
        with m.Else():
            for number, f in enumerate(fields, 1):
                with m.If(s4_field == number):
                    m.d.sync += sums[f.name].eq(s4_sum)
            with m.If(Array([Const(0, 1), *exceeds, Const(1, 1)])[s5_field]):
                m.d.sync += bad.eq(1)

        m.d.comb += self.o.payload.eq(head)
        with m.If(needed):
            m.d.comb += [self.o.payload[name].eq(value) for name, value in sums.items()]
        zero = Cat(
            (sums[f.name] < f.least) & Cat(field == number for field, _, _ in slots).any()
            for number, f in enumerate(fields, 1)
            if f.least
        ).any()
        least = delayed(m, zero, 1)
        m.d.comb += self.illegal.eq(self.i.valid & self.enable & needed & finished & (bad | least))
        return m
