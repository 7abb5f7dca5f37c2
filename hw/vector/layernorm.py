"""LayerNorm's moments: from sums to mean and reciprocal deviation, one column per cycle."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..lanes.sums import register
from ..ports import sums_layout
from ..product import Product
from ..shared import Shared
from .softmax import leading_one

__all__ = ["Moments", "moments_layout"]

VARIANCE_BITS = 54
_SPLIT = 24
"""Bits of Q that one multiplier takes."""


def moments_layout() -> data.StructLayout:
    """What normalises a column: S, r and k of numerics.layernorm."""
    return data.StructLayout({"sum": signed(28), "r": 16, "k": 6})


class Moments(wiring.Component):
    """V = D * Q - S * S + eps, its normalisation and the lookup of 1 / sqrt(V), for all columns after `capture`.

    `sums` are taken in the cycle of `capture`; `moments[bank]` is complete columns + 10 cycles later and holds until
    the next capture for the same bank. Captures must be at least `columns` cycles apart; `channels` and `eps`
    must be stable from a capture until its moments are complete. `index` and `value` go to the RSQRT table.

    With `summed` sums may also come a column per cycle, in `columns` cycles with `word_valid` and `word_bank`: moments are
    complete columns + 10 cycles after the first one, and none of the bank's change until three cycles after it.
    """

    def __init__(self, columns: int, summed: bool = False):
        self.columns, self.summed = columns, summed
        super().__init__(
            {
                "capture": In(1),
                "bank": In(1),
                "sums": In(data.ArrayLayout(sums_layout(), columns)),
                "channels": In(12),
                "eps": In(signed(48)),
                "index": Out(10),
                "value": In(16),
                "moments": Out(data.ArrayLayout(data.ArrayLayout(moments_layout(), columns), 2)),
                **({"word_valid": In(1), "word_bank": In(1), "word": In(sums_layout())} if summed else {}),
            }
        )

    def elaborate(self, platform):
        m = Module()
        columns = self.columns
        shadow = Signal(data.ArrayLayout(sums_layout(), columns), reset_less=True)
        banks = Signal(data.ArrayLayout(data.ArrayLayout(moments_layout(), columns), 2), reset_less=True)
        left = Signal(ceil_log2(columns + 1))
        bank = Signal()

        with m.If(self.capture):
            m.d.sync += [shadow.eq(self.sums), left.eq(columns), bank.eq(self.bank)]
            for b in range(0 if self.summed else 2):
                with m.If(self.bank == b):
                    m.d.sync += [banks[b][c].sum.eq(self.sums[c].sum) for c in range(columns)]
        with m.Elif(left.any()):
            m.d.sync += [shadow[c].eq(shadow[c + 1]) for c in range(columns - 1)]
            m.d.sync += left.eq(left - 1)

        active = left.any()
        if self.summed:
            word = Signal()
            m.d.sync += word.eq(self.word_valid)
            with m.If(self.word_valid):
                m.d.sync += [shadow[0].eq(self.word), bank.eq(self.word_bank)]
            active = active | word

        head = shadow[0]
        # Products that are wider than a multiplier, in parts.
        m.submodules.scaled_low = scaled_low = Shared(Product, _SPLIT + 1, len(self.channels) + 1)
        m.d.comb += [scaled_low.a.eq(head.squares[:_SPLIT]), scaled_low.b.eq(self.channels)]
        scaled_high = register(m, self.channels * head.squares[_SPLIT:], "scaled_high_1")
        scaled_high = register(m, scaled_high, "scaled_high_2")
        low, high = head.sum[:14], head.sum[14:].as_signed()
        parts = [register(m, high * high, "square_high"), register(m, low * low, "square_low")]
        middle = register(m, high * low, "square_middle")
        square = register(m, Cat(parts[1], parts[0]).as_signed() + (middle << 15), "square")
        lower = register(m, scaled_low.p - square, "lower")
        upper = register(m, (scaled_high << _SPLIT) + self.eps, "upper")
        variance = register(m, (lower + upper)[:VARIANCE_BITS], "variance")
        pairs = Cat(variance[2 * p] | variance[2 * p + 1] for p in range(VARIANCE_BITS // 2))
        pair = register(m, leading_one(m, pairs, "pair"), "pair_5")
        variance_5 = register(m, variance, "variance_5")
        index = register(m, ((variance_5 << 8) >> Cat(C(0, 1), pair))[:10], "index_6")
        for stage in range(6, 10):
            pair = register(m, pair, f"pair_{stage}")
        m.d.comb += self.index.eq(index)

        target = bank
        for stage in range(1, 10):
            following, its_bank = Signal(name=f"active_{stage}"), Signal(name=f"bank_{stage}")
            m.d.sync += [following.eq(active), its_bank.eq(target)]
            active, target = following, its_bank
            if stage == 1 and self.summed:
                self.shift(m, banks, active, target, "sum", register(m, head.sum, "sum_1"))
        for b in range(2):
            with m.If(active & (target == b)):
                for c in range(columns):
                    last = c == columns - 1
                    m.d.sync += [
                        banks[b][c].r.eq(self.value if last else banks[b][c + 1].r),
                        banks[b][c].k.eq(pair + 6 if last else banks[b][c + 1].k),
                    ]
        m.d.comb += self.moments.eq(banks)
        return m

    def shift(self, m: Module, banks: data.View, active, bank, name: str, value) -> None:
        """A column's value into the last place of a bank, which moves the others on."""
        for b in range(2):
            with m.If(active & (bank == b)):
                for c in range(self.columns):
                    following = value if c == self.columns - 1 else banks[b][c + 1][name]
                    m.d.sync += banks[b][c][name].eq(following)
