"""Row moments: the sums of every position's outputs and of their squares, while the drain writes them."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..arch.accelerator import Accelerator
from .delay import delayed
from .lanes.sums import groups
from .ports import ROW_BITS, RowMomentsPort, sums_layout

__all__ = ["RowMoments"]

_CODES_CYCLE = 14


class RowMoments(wiring.Component):
    """The sums of every column's codes and of their squares in a tile, added to those of an earlier instruction with `add`.

    The drain's steps come in cycle p0 with `valid`: `first` and `last` of a tile that has at least `moment_steps`; their codes
    and squares are there 14 cycles later. `o` shows a column per cycle, column c of a tile at most 25 + c cycles after its last
    step (drain = 32), where a LAYERNORM that waits for the drain's `done` reads it after 30 + c at the earliest. What `add` takes is in a copy of the memory.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        columns, drain = accelerator.columns, accelerator.drain
        super().__init__(
            {
                "valid": In(1),
                "first": In(1),
                "last": In(1),
                "add": In(1),
                "row": In(ROW_BITS),
                "p14_codes": In(data.ArrayLayout(data.ArrayLayout(signed(16), drain), columns)),
                "p14_squares": In(data.ArrayLayout(data.ArrayLayout(31, drain), columns)),
                "o": Out(RowMomentsPort(accelerator)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        a, stage = self.accelerator, _CODES_CYCLE
        columns = range(a.columns)
        addends = {
            name: [[codes[c][i] for i in range(a.drain)] for c in columns]
            for name, codes in (("sum", self.p14_codes), ("squares", self.p14_squares))
        }
        while len(addends["sum"][0]) > 1:
            addends = {
                name: [[delayed(m, x + y, 1) for x, y in groups(codes, 2)] for codes in every]
                for name, every in addends.items()
            }
            stage += 1
        valid = delayed(m, self.valid, stage, reset_less=False)
        first = delayed(m, self.first, stage)
        sums = [Signal(sums_layout(), name=f"sums_{c}", reset_less=True) for c in columns]
        for c in columns:
            for name, every in addends.items():
                with m.If(valid):
                    m.d.sync += sums[c][name].eq(every[c][0] + Mux(first, 0, sums[c][name]))
        taken = delayed(m, self.valid & self.last, stage + 1, reset_less=False)
        self.emit(m, taken, sums, delayed(m, self.row, stage + 1), delayed(m, self.add, stage + 1))
        return m

    def emit(self, m: Module, taken, sums: list[data.View], row, add) -> None:
        """A tile's sums, taken in one cycle, to the memory one column after the other."""
        a, bits = self.accelerator, ceil_log2(self.accelerator.columns)
        layout = sums_layout()
        held = Signal(data.ArrayLayout(layout, a.columns), reset_less=True)
        column, active = Signal(bits), Signal()
        of, adds = Signal(ROW_BITS, reset_less=True), Signal(reset_less=True)
        with m.If(taken):
            m.d.sync += [*(held[c].eq(one) for c, one in enumerate(sums)), of.eq(row), adds.eq(add)]
            m.d.sync += [active.eq(1), column.eq(0)]
        with m.Elif(active):
            m.d.sync += [column.eq(column + 1), active.eq(column != a.columns - 1)]

        m.submodules.rows = rows = memory.Memory(shape=layout.size, depth=a.row_moments << bits, init=[])
        read, write = rows.read_port(), rows.write_port()
        own = delayed(m, held[column].as_value(), 2)
        before = Signal(layout, reset_less=True)
        m.d.comb += read.addr.eq(Cat(column, of))
        m.d.sync += before.eq(read.data)
        with m.If(~delayed(m, adds, 1)):
            m.d.sync += before.eq(0)
        own = data.View(layout, own)
        for name in ("sum", "squares"):
            m.d.sync += self.o.moments[name].eq(own[name] + before[name])
        m.d.sync += self.o.entry.eq(delayed(m, Cat(column, of), 2))
        m.d.comb += [
            self.o.valid.eq(delayed(m, active, 3, reset_less=False)),
            write.en.eq(self.o.valid),
            write.addr.eq(self.o.entry),
            write.data.eq(self.o.moments),
        ]
