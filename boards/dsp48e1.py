"""Parts of the array on DSP48E1 (7 series). Source: AMD UG479, "7 Series DSP48E1 Slice"."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Instance, Module, Signal, Value

from ..hw.lanes.chain import QUAD, TAPS, Packing, SplitChain
from ..hw.lanes.sums import register
from .dsp48e2 import A_BITS, B_BITS, P_BITS, extended, inputs, parameters

__all__ = ["SHORT_QUAD", "DspChain"]

D_BITS = 25
SHORT_TAPS = 2
"""Products of a cascade whose fields hold their sums."""
SHORT_QUAD = Packing(weight_bits=4, operand_bits=17, shift=20, field_bits=10, fields=4)
"""As `QUAD`, in a multiplier of 25 x 18 bits, whose fields hold half as many products: 2 * 7 * 32 and 2 * 8 * 31 < 2 ** 9."""
ADD_C, ADD_CASCADE = 0b011_01_01, 0b001_01_01
"""OPMODE: X and Y carry the product; Z adds C or PCIN."""


class DspChain(SplitChain):
    """`Chain` of four products in each DSP48E1, as two cascades of two, whose fields are added in LUTs.

    Two Fixed-8 weights do not fit: with the sums of two products 17 bits apart, -128 beside a negative weight exceeds the
    pre-adder. `PAIR` stays a `SplitChain`.
    """

    def elaborate(self, platform):
        if self.packing != QUAD:
            return super().elaborate(platform)
        m = Module()
        # The second cascade's operands come later: it goes without the registers that the first one has.
        first, second = (SHORT_QUAD.split(self.cascade(m, start)) for start in range(0, TAPS, SHORT_TAPS))
        first = [register(m, field, f"first_{i}") for i, field in enumerate(first)]
        sums = (
            register(m, (a + b)[: QUAD.field_bits], f"sum_{i}")
            for i, (a, b) in enumerate(zip(first, second, strict=True))
        )
        m.d.comb += self.sum.eq(Cat(sums))
        return m

    def cascade(self, m: Module, start: int) -> Signal:
        """The sum of the products of taps start, start + 1: of `SHORT_QUAD`, 4 cycles after tap 0 or 5."""
        cascade = Const(0, P_BITS)
        for i in range(start, start + SHORT_TAPS):
            early = i != 1
            product, onward = Signal(P_BITS, name=f"p_{i}"), Signal(P_BITS, name=f"pcout_{i}")
            m.submodules[f"dsp_{i}"] = Instance(
                "DSP48E1",
                **{f"p_{name}": value for name, value in settings(early).items()},
                **{name: value for name, value in inputs().items() if name != "i_C"},
                i_A=extended(Cat(Const(0, SHORT_QUAD.shift), self.high[i]), A_BITS),
                i_B=extended(self.narrowed(self.operand[i]), B_BITS),
                i_C=Const(SHORT_QUAD.offset, P_BITS),
                i_D=extended(self.low[i], D_BITS),
                i_PCIN=cascade,
                i_OPMODE=Const(ADD_C if i == start else ADD_CASCADE, 7),
                o_P=product,
                o_PCOUT=onward,
            )
            cascade = onward
        return product

    def narrowed(self, word: Value) -> Value:
        """The word left + (right << 10) of left + (right << 11): bits 5..10 are left's sign."""
        return Cat(word[: SHORT_QUAD.field_bits], word[QUAD.field_bits :])


def settings(early: bool) -> dict[str, int | str]:
    """Of a multiplier with pre-adder; `early` has a register less before the product's."""
    found = parameters(early)
    for name in ("AMULTSEL", "BMULTSEL", "PREADDINSEL"):
        del found[name]
    return {**found, "USE_DPORT": "TRUE"}
