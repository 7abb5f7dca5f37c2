"""The loops of a MATRIX instruction's operand fetch, and the window of each column in them."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from ..arch import isa
from ..arch.accelerator import Accelerator
from .decode import instruction_layout
from .operand import aligned, count_bits
from .ports import ROW_BITS

__all__ = ["POSITION_BITS", "TILE_BITS", "Walk"]

TILE_BITS = 18
"""Of a number of a tile of positions."""
POSITION_BITS = 22
"""Of an input position; of a window's origin it may be negative."""
_Y_BITS, _X_BITS = 12, 14
"""Of image rows, and of columns or bytes; what is negative or too large wraps to what no image has."""


class Walk(wiring.Component):
    """Loop counters of one instruction: an element in every cycle with `advance`, while `valid`.

    An element is a chunk of all columns (LINEAR, CONV), or one read of one column (JOIN): `tap_chunks + 1` of them
    make `tap_chunks` chunks. With `private` it is all `tap_chunks` chunks of a tap, and `index` steps by the parameter
    of that name, from a multiple of it on. Loops, outermost first: tiles, groups, window rows, (JOIN: columns,) chunks,
    (CONV: window columns). A column's window is its origin `x`, `y` and its distance in positions from a common one, which is
    columns - 1 before the last column's. They are stepped once per tile, by columns // out_width lines and the rest,
    so nothing is divided.

    After `start` LINEAR is valid in the next cycle, CONV and JOIN `columns` cycles later.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        columns = accelerator.columns
        super().__init__(
            {
                "start": In(1),
                "ins": In(instruction_layout(isa.Opcode.MATRIX)),
                "advance": In(1),
                "valid": Out(1),
                "busy": Out(1),
                "index": Out(count_bits(accelerator)),
                "tile": Out(TILE_BITS),
                "offset": Out(ROW_BITS),
                # CONV: which columns see a pixel, the common position, and distances from it.
                "inside": Out(columns),
                "position": Out(POSITION_BITS),
                "distance": Out(signed(POSITION_BITS)).array(columns),
                # JOIN: the column, whether this read completes a chunk, and the first byte of it.
                "column": Out(ceil_log2(columns)),
                "writes": Out(1),
                "counts": Out(1),
                "visible": Out(1),
                # private: whether it is the second of two taps.
                "odd": Out(1),
                "y": Out(_Y_BITS),
                "x": Out(signed(16)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        ins, columns = self.ins, self.accelerator.columns
        linear, conv, join = (ins.mode == mode for mode in isa.FetchMode)
        left, skip = Signal(18), Signal(4)
        group, group_row, line = Signal(11), Signal(ROW_BITS), Signal(POSITION_BITS)
        tap_y, tap_x, inner = Signal(8), Signal(4), Signal(12)
        base = Signal.like(self.index)
        xs, ys = self.windows(m, skip, self.advance)

        private, step = self.accelerator.private, 1
        if private > 1:
            step = Mux(ins.private, private, 1)
        inner_count = Mux(linear, ins.chunks, Mux(ins.private, 1, ins.tap_chunks + join))
        tap_x_last, inner_last, column_last = Signal(), Signal(), Signal()
        tap_y_last, group_last, tile_last = Signal(), Signal(), Signal()
        m.d.comb += [
            tap_x_last.eq(~conv | (tap_x + 1 == ins.taps_x)),
            inner_last.eq(tap_x_last & (inner + 1 == inner_count)),
            column_last.eq(inner_last & (~join | (self.column == columns - 1))),
            tap_y_last.eq(column_last & (linear | (tap_y + 1 == ins.taps_y))),
            group_last.eq(tap_y_last & (group + 1 == ins.groups)),
            tile_last.eq(left <= columns),
            self.tile_end.eq(group_last),
            self.writes.eq(~join | (inner != 0)),
            self.counts.eq(self.writes & (~join | (self.column == columns - 1))),
            self.offset.eq(group_row + inner),
        ]
        alive = [(skip <= c) & (left > c) for c in range(columns)]
        begin = Signal(_X_BITS)
        m.d.comb += [
            begin.eq(ins.start_x + tap_x),
            self.inside.eq(
                Cat(
                    alive[c]
                    & ((ys[c] + tap_y)[:_Y_BITS] < ins.height)
                    & ((xs[c] + begin)[:_X_BITS] < ins.width)
                    for c in range(columns)
                )
            ),
            self.position.eq(self.origin + line + tap_x),
            self.visible.eq(Array(alive)[self.column]),
            self.y.eq(Array(ys)[self.column] + tap_y),
            self.x.eq(Array(xs)[self.column] + ins.start_x + (inner << exact_log2(self.accelerator.depth))),
        ]

        with m.If(self.advance):
            m.d.sync += [
                tap_x.eq(Mux(tap_x_last, 0, tap_x + 1)),
                inner.eq(Mux(inner_last, 0, inner + tap_x_last)),
                self.index.eq(self.index + Mux(self.writes, step, 0)),
                tap_y.eq(Mux(tap_y_last, 0, tap_y + column_last)),
                line.eq(Mux(tap_y_last, 0, Mux(column_last, line + ins.width, line))),
            ]
            if self.accelerator.private_taps > 1:
                m.d.sync += self.odd.eq(~self.odd & ins.private & ~tap_y_last)
            with m.If(inner_last & join):
                m.d.sync += [
                    self.column.eq(Mux(column_last, 0, self.column + 1)),
                    self.index.eq(Mux(column_last, self.index + 1, base)),
                ]
            with m.If(column_last):
                m.d.sync += base.eq(self.index + step)
            with m.If(tap_y_last):
                m.d.sync += [
                    group.eq(Mux(group_last, 0, group + 1)),
                    group_row.eq(Mux(group_last, 0, group_row + Mux(linear, ins.chunks, ins.tap_chunks))),
                ]
            with m.If(group_last):
                m.d.sync += [
                    self.tile.eq(self.tile + 1),
                    left.eq(left - columns),
                    skip.eq(Mux(skip > columns, skip - columns, 0)),
                    self.valid.eq(~tile_last),
                ]
        with m.If(self.start):
            m.d.sync += [self.tile.eq(0), left.eq(ins.positions), skip.eq(ins.prefix)]
            with m.If(ins.private):
                m.d.sync += self.index.eq(aligned(self.index, private))
        with m.If(Mux(linear, self.start, self.placed)):
            m.d.sync += self.valid.eq(1)
        return m

    def windows(self, m: Module, skip: Signal, advance) -> tuple[list, list]:
        """Origins of the columns' windows in the current tile: `x` from the line's begin, and `y`.

        After a start column c is stepped (c - prefix) % columns times by a position, all side by side. At the end
        of a tile it is stepped by `columns` positions, unless it was one of the prefix: then it waits.
        """
        ins, columns = self.ins, self.accelerator.columns
        self.tile_end, self.placed = Signal(), Signal()
        number = Signal(range(columns + 1))
        # A step: in columns, before a line's end and over it; in rows; in positions, likewise. A line: columns, positions.
        step_x, less_x, step_y = Signal(_X_BITS), Signal(signed(_X_BITS + 1)), Signal(_Y_BITS)
        step_q, jump_q, wrap_q = (
            Signal(POSITION_BITS, name=f"{name}_q") for name in ("step", "jump", "wrap")
        )
        line_x, line_q = Signal(_X_BITS), Signal(POSITION_BITS)
        tile_x, tile_y, tile_q = Signal(_X_BITS), Signal(_Y_BITS), Signal(POSITION_BITS)
        self.origin = Signal(POSITION_BITS)

        placing = number > 1
        m.d.comb += [self.placed.eq(number == columns), self.busy.eq(self.valid | (number != 0))]
        with m.If(self.start):
            m.d.sync += [
                number.eq(ins.mode != isa.FetchMode.LINEAR),
                line_x.eq(ins.out_width * ins.stride_x),
                line_q.eq(ins.stride_y * ins.width),
                tile_x.eq(ins.advance_x * ins.stride_x),
                tile_y.eq(ins.advance_y * ins.stride_y),
            ]
        with m.If(number != 0):
            m.d.sync += number.eq(Mux(self.placed, 0, number + 1))
        with m.If(number == 1):
            m.d.sync += [
                tile_q.eq(ins.advance_y * line_q + tile_x),
                wrap_q.eq(line_q - line_x),
                step_x.eq(ins.stride_x),
                less_x.eq(ins.stride_x - line_x),
                step_y.eq(0),
                step_q.eq(ins.stride_x),
                jump_q.eq(line_q - line_x + ins.stride_x),
            ]
        with m.If(self.placed):
            m.d.sync += [
                step_x.eq(tile_x),
                less_x.eq(tile_x - line_x),
                step_y.eq(tile_y),
                step_q.eq(tile_q),
                jump_q.eq(wrap_q + tile_q),
            ]

        xs = [Signal(_X_BITS, name=f"x_{c}", reset_less=True) for c in range(columns)]
        ys = [Signal(_Y_BITS, name=f"y_{c}", reset_less=True) for c in range(columns)]
        steps = [Signal(name=f"step_{c}") for c in range(columns)]
        over = [x + less_x for x in xs]
        wraps = [value >= 0 for value in over]
        for c in range(columns):
            turns = Array((c - prefix) % columns for prefix in range(16))[ins.prefix]
            m.d.comb += steps[c].eq(Mux(placing, number - 2 < turns, advance & self.tile_end & (skip <= c)))
        qs = [Signal(POSITION_BITS, name=f"q_{c}", reset_less=True) for c in range(columns)]
        for c, (x, y, q) in enumerate(zip(xs, ys, qs, strict=True)):
            with m.If(self.start):
                m.d.sync += [x.eq(0), y.eq(ins.start_y), q.eq(ins.start_y * ins.width + ins.start_x)]
            with m.Elif(steps[c]):
                m.d.sync += [
                    x.eq(Mux(wraps[c], over[c], x + step_x)),
                    y.eq(y + step_y + Mux(wraps[c], ins.stride_y, 0)),
                    q.eq(q + Mux(wraps[c], jump_q, step_q)),
                ]
            m.d.comb += self.distance[c].eq(q - qs[-1] + (columns - 1))
        m.d.comb += self.origin.eq(qs[-1] - (columns - 1))
        return xs, ys
