"""Parts of the array on DSP48E2 (UltraScale and UltraScale+). Source: AMD UG579, "UltraScale Architecture DSP Slice"."""

from __future__ import annotations

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, Value
from amaranth.lib import wiring

from ..hw.lanes import triple_chain
from ..hw.lanes.chain import TAPS, Chain, Packing
from ..hw.lanes.triple_chain import TripleChain, packed

__all__ = ["DspChain", "DspTripleChain"]

A_BITS, B_BITS, C_BITS, D_BITS, P_BITS = 30, 18, 48, 27, 48
ADD_ROUND, ADD_CASCADE, ADD_NONE = 0b10_000_01_01, 0b00_001_01_01, 0b00_000_01_01
"""OPMODE: X and Y carry the product; W adds RND, or Z adds PCIN."""
ADD_D, SUBTRACT_A = 0b00100, 0b01100
"""INMODE: the pre-adder's D input is on, and A added or subtracted; A and B come through all their registers."""


class DspChain(wiring.Component):
    """`Chain` with a DSP48E2 for each tap: the pre-adder packs the weights, P cascades, all registers are in use.

    Tap 0 has one register in front of its multiplier, the others two.
    """

    def __init__(self, packing: Packing):
        self.packing = packing
        super().__init__(Chain.ports(packing))

    def elaborate(self, platform):
        m = Module()
        cascade = Const(0, P_BITS)
        for i in range(TAPS):
            early = i == 0
            product, onward = Signal(P_BITS, name=f"p_{i}"), Signal(P_BITS, name=f"pcout_{i}")
            m.submodules[f"dsp_{i}"] = Instance(
                "DSP48E2",
                **{f"p_{name}": value for name, value in parameters(early).items()},
                **inputs(),
                p_RND=Const(self.packing.offset, P_BITS),
                i_A=extended(Cat(Const(0, self.packing.shift), self.high[i]), A_BITS),
                i_B=extended(self.operand[i], B_BITS),
                i_D=extended(self.low[i], D_BITS),
                i_PCIN=cascade,
                i_OPMODE=Const(ADD_ROUND if early else ADD_CASCADE, 9),
                o_P=product,
                o_PCOUT=onward,
            )
            cascade = onward
        m.d.comb += self.sum.eq(product)
        return m


class DspTripleChain(wiring.Component):
    """`TripleChain` with a DSP48E2 for each tap: the pre-adder makes three weights of their bits and signs, P cascades."""

    def __init__(self):
        super().__init__(TripleChain.ports())

    def elaborate(self, platform):
        m = Module()
        cascade = Const(0, P_BITS)
        for i in range(triple_chain.TAPS):
            early = i == 0
            positive, negative = packed(list(self.weights[i]))
            product, onward = Signal(P_BITS, name=f"p_{i}"), Signal(P_BITS, name=f"pcout_{i}")
            m.submodules[f"dsp_{i}"] = Instance(
                "DSP48E2",
                **{f"p_{name}": value for name, value in parameters(early).items()},
                **inputs(SUBTRACT_A),
                i_A=padded(negative, A_BITS),
                i_B=extended(self.operand[i], B_BITS),
                i_D=padded(positive, D_BITS),
                i_PCIN=cascade,
                i_OPMODE=Const(ADD_NONE if early else ADD_CASCADE, 9),
                o_P=product,
                o_PCOUT=onward,
            )
            cascade = onward
        m.d.comb += self.sum.eq(product)
        return m


def parameters(early: bool) -> dict[str, int | str]:
    """Of a multiplier with pre-adder; `early` has a register less before the product's."""
    registers = 0 if early else 1
    return {
        "AMULTSEL": "AD",
        "BMULTSEL": "B",
        "PREADDINSEL": "A",
        "AREG": registers,
        "ACASCREG": registers,
        "DREG": registers,
        "ADREG": 1,
        "BREG": registers + 1,
        "BCASCREG": registers + 1,
        "MREG": 1,
        "PREG": 1,
        "CREG": 0,
        "ALUMODEREG": 0,
        "CARRYINREG": 0,
        "CARRYINSELREG": 0,
        "INMODEREG": 0,
        "OPMODEREG": 0,
        "USE_MULT": "MULTIPLY",
        "USE_SIMD": "ONE48",
    }


def inputs(inmode: int = ADD_D) -> dict[str, Value]:
    """Clock, enables, resets and the ports that are constant."""
    enables = ["A1", "A2", "AD", "ALUMODE", "B1", "B2", "C", "CARRYIN", "CTRL", "D", "INMODE", "M", "P"]
    resets = ["A", "ALLCARRYIN", "ALUMODE", "B", "C", "CTRL", "D", "INMODE", "M", "P"]
    constants = {"ACIN": A_BITS, "BCIN": B_BITS, "C": C_BITS, "ALUMODE": 4, "CARRYINSEL": 3}
    constants |= {"CARRYIN": 1, "CARRYCASCIN": 1, "MULTSIGNIN": 1}
    return {
        "i_CLK": ClockSignal(),
        "i_INMODE": Const(inmode, 5),
        **{f"i_CE{name}": Const(1) for name in enables},
        **{f"i_RST{name}": Const(0) for name in resets},
        **{f"i_{name}": Const(0, bits) for name, bits in constants.items()},
    }


def padded(value: Value, bits: int) -> Value:
    """An unsigned `value` with `bits` bits."""
    return Cat(value, Const(0, bits - len(value)))


def extended(value: Value, bits: int) -> Value:
    """A two's complement `value` with `bits` bits."""
    value = Value.cast(value)
    return Cat(value, value[-1].replicate(bits - len(value)))
