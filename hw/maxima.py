"""Row maxima: the largest logit of every position, while the drain writes them."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..arch.accelerator import Accelerator
from ..arch.numerics import LOGIT_BITS
from .delay import delayed
from .ports import ROW_BITS, RowMaximaPort

__all__ = ["Maxima"]

_CODES_CYCLE = 13


class Maxima(wiring.Component):
    """The largest code of every column in a tile.

    The drain's steps come in cycle p0 with `valid`: number `step` of a tile, `last` its last one; `p13_codes` are theirs
    13 cycles later. Left out are channels from `channels` on, and slots of keys that belong to no token; the first channel
    must be there. `o` shows a tile's maxima for one cycle, at most 20 cycles after its last step: a VECTOR instruction that
    waits for the drain's `done` reads them in cycle 27 at the earliest.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        codes = data.ArrayLayout(signed(LOGIT_BITS), accelerator.plain_drain)
        super().__init__(
            {
                "valid": In(1),
                "last": In(1),
                "step": In(ROW_BITS),
                "plain": In(1),
                "channels": In(12),
                "row": In(ROW_BITS),
                "p13_codes": In(data.ArrayLayout(codes, accelerator.columns)),
                "o": Out(RowMaximaPort(accelerator)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        a, stage = self.accelerator, _CODES_CYCLE
        present = delayed(m, self.present(m), stage - 3)
        codes = [[self.p13_codes[c][i] for i in range(a.plain_drain)] for c in range(a.columns)]
        while len(present) > 1:
            codes = [self.larger(m, column, present) for column in codes]
            present = delayed(m, present[::2] | present[1::2], 1)
            stage += 1

        valid = delayed(m, self.valid, stage, reset_less=False)
        first = delayed(m, self.step == 0, stage)
        for c, (code,) in enumerate(codes):
            largest = Signal(signed(LOGIT_BITS), name=f"largest_{c}", reset_less=True)
            with m.If(valid & (first | (present & (code > largest)))):
                m.d.sync += largest.eq(code)
            m.d.comb += self.o.maxima[c].eq(largest)
        m.d.comb += [
            self.o.valid.eq(delayed(m, self.valid & self.last, stage + 1, reset_less=False)),
            self.o.row.eq(delayed(m, self.row, stage + 1)),
        ]
        return m

    def present(self, m: Module) -> Value:
        """Which codes of a step count, in cycle p3."""
        a = self.accelerator
        plain = self.plain if a.plain_steps == 2 else C(0, 1)
        p1_first = delayed(m, (Mux(plain, self.step << 1, self.step) << exact_log2(a.drain))[:ROW_BITS], 1)
        p2_rest = delayed(m, delayed(m, self.channels, 1) - p1_first, 1)
        p2_slot, p2_plain = delayed(m, p1_first[: exact_log2(a.depth)], 1), delayed(m, plain, 2)
        found = []
        for i in range(a.plain_drain):
            token = 1 if a.tokens_per_word == a.depth else p2_slot + i < a.tokens_per_word
            drained = 1 if i < a.drain else p2_plain
            found.append((p2_rest > i) & token & drained)
        return delayed(m, Cat(found), 1)

    def larger(self, m: Module, codes: list[Value], present: Value) -> list[Value]:
        """Of each two codes the larger one that counts, a cycle later."""
        found = []
        for i in range(0, len(codes), 2):
            first, second = codes[i], codes[i + 1]
            found.append(delayed(m, Mux(~present[i] | (present[i + 1] & (second > first)), second, first), 1))
        return found
