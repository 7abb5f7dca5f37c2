"""The loops of a MATRIX instruction's operand fetch, and the window of each column in them."""

from __future__ import annotations

import functools

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..arch import isa
from ..arch.accelerator import Accelerator
from .decode import instruction_layout
from .loop import loop
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

    What is shown belongs to the element that left last, and changes in cycles with `moves`; all `advance` are among these.
    After `start` LINEAR is valid in the next cycle, CONV and JOIN `columns + 1` cycles later. `moves` is high in these.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        columns = accelerator.columns
        super().__init__(
            {
                "start": In(1),
                "ins": In(instruction_layout(isa.Opcode.MATRIX)),
                "advance": In(1),
                "moves": In(1),
                "valid": Out(1),
                "busy": Out(1),
                "index": Out(count_bits(accelerator)),
                # Of the element that left last.
                "address": Out(count_bits(accelerator)),
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
        ins, columns, private = self.ins, self.accelerator.columns, self.accelerator.private
        linear, conv, join = (ins.mode == mode for mode in isa.FetchMode)
        skip, column, writes, odd = Signal(4), Signal.like(self.column), Signal(), Signal()
        tap_y, tile, base = Signal(8), Signal(TILE_BITS), Signal.like(self.index)
        step = Mux(ins.private, private, 1) if private > 1 else 1

        # Of each loop but the columns' a register is high in its last turn.
        step_inner, step_row, step_group, step_tile = (
            Signal(name=f"step_{name}") for name in ("inner", "row", "group", "tile")
        )
        inner_count = Mux(linear, ins.chunks, Mux(ins.private, 1, ins.tap_chunks))
        _, tap_x_last, _ = loop(m, self.advance, self.start, Mux(conv, ins.taps_x, 1))
        _, inner_last, _ = loop(m, step_inner, self.start, inner_count)
        _, tap_y_last, _ = loop(m, step_row, self.start, Mux(linear, 1, ins.taps_y))
        _, group_last, _ = loop(m, step_group, self.start, ins.groups)
        left, tile_last, _ = loop(m, step_tile, self.start, ins.positions, ahead=columns, first_ahead=columns)
        column_last = Signal()
        # `advance` comes late.
        inner_end = tap_x_last & writes & inner_last
        row_end = inner_end & column_last
        group_end = row_end & tap_y_last
        tile_end = group_end & group_last
        m.d.comb += [
            step_inner.eq(self.advance & tap_x_last & writes),
            step_row.eq(self.advance & row_end),
            step_group.eq(self.advance & group_end),
            step_tile.eq(self.advance & tile_end),
        ]
        with m.If(self.advance):
            m.d.sync += [
                self.index.eq(self.index + Mux(writes, step, 0)),
                # A JOIN's first read of a window row is one more than it has chunks.
                writes.eq(~join | ~inner_end),
            ]
            if self.accelerator.private_taps > 1:
                m.d.sync += odd.eq(~odd & ins.private & ~group_end)
        step_line = self.advance & inner_end
        with m.If(step_line & join):
            m.d.sync += [
                column.eq(Mux(column_last, 0, column + 1)),
                column_last.eq(Mux(column_last, columns == 1, column == columns - 2)),
                self.index.eq(Mux(column_last, self.index + 1, base)),
            ]
        with m.If(step_row):
            m.d.sync += [base.eq(self.index + step), tap_y.eq(Mux(tap_y_last, 0, tap_y + 1))]
        with m.If(step_tile):
            m.d.sync += [
                tile.eq(tile + 1),
                skip.eq(Mux(skip > columns, skip - columns, 0)),
                self.valid.eq(~tile_last),
            ]
        alive = Signal(columns)
        """Columns whose positions the walk's tile has."""
        for c in range(columns):
            with m.If(self.start):
                m.d.sync += alive[c].eq((ins.prefix <= c) & (ins.positions > c))
            with m.Elif(step_tile):
                m.d.sync += alive[c].eq((skip <= c + columns) & (left > c + columns))
        xs = self.windows(m, skip, tile_end)
        with m.If(self.start):
            m.d.sync += [
                tile.eq(0),
                skip.eq(ins.prefix),
                writes.eq(~join),
                column_last.eq(~join | (columns == 1)),
            ]
            with m.If(ins.private):
                m.d.sync += self.index.eq(aligned(self.index, private))
        with m.If(Mux(linear, self.start, self.placed)):
            m.d.sync += self.valid.eq(1)

        cell, offset, begin = self.places(m, tap_x_last, inner_end, row_end, group_end, tile_end)
        shown_y, shown_cell, inside = Signal.like(tap_y), Signal.like(cell), Signal(columns)
        with m.If(self.moves):
            m.d.sync += [
                self.address.eq(self.index),
                self.tile.eq(tile),
                self.offset.eq(offset),
                self.column.eq(column),
                self.writes.eq(writes),
                self.counts.eq(writes & column_last),
                self.visible.eq(Array(alive)[column]),
                self.odd.eq(odd),
                self.x.eq(Array(xs)[column] + begin),
                shown_y.eq(tap_y),
                shown_cell.eq(cell),
                *(inside[c].eq(alive[c] & ((x + begin)[:_X_BITS] < ins.width)) for c, x in enumerate(xs)),
            ]
        m.d.comb += [
            self.inside.eq(
                Cat(inside[c] & ((y + shown_y)[:_Y_BITS] < ins.height) for c, y in enumerate(self.ys))
            ),
            self.position.eq(self.origin + shown_cell),
            self.y.eq(Array(self.ys)[self.column] + shown_y),
        ]
        return m

    def places(self, m: Module, tap_x_last, inner_end, row_end, group_end, tile_end):
        """The tap's position in its image, from the window's origin; the offset of the chunk in its row of the scratchpad; the tap's x,
        or the first byte's, from the window's."""
        ins = self.ins
        linear, join = ins.mode == isa.FetchMode.LINEAR, ins.mode == isa.FetchMode.JOIN
        line, cell = Signal(POSITION_BITS), Signal(POSITION_BITS)
        group_row, offset, begin = Signal(ROW_BITS), Signal(ROW_BITS), Signal(16)
        below, after = Signal(POSITION_BITS), Signal(ROW_BITS)
        m.d.comb += [
            below.eq(Mux(group_end, 0, line + ins.width)),
            after.eq(Mux(tile_end, 0, group_row + Mux(linear, ins.chunks, ins.tap_chunks))),
        ]
        begin_step = Mux(join, self.accelerator.depth, 1)
        with m.If(self.advance):
            m.d.sync += [
                cell.eq(Mux(row_end, below, Mux(tap_x_last, line, cell + 1))),
                line.eq(Mux(row_end, below, line)),
                offset.eq(Mux(group_end, after, Mux(inner_end, group_row, offset + tap_x_last))),
                group_row.eq(Mux(group_end, after, group_row)),
                begin.eq(Mux(Mux(join, inner_end, tap_x_last), ins.start_x, begin + begin_step)),
            ]
        with m.If(self.start):
            m.d.sync += begin.eq(ins.start_x)
        return cell, offset, begin

    def windows(self, m: Module, skip: Signal, tile_end) -> list:
        """Origins of the columns' windows: `x` from the line's begin in the walk's tile, which are returned, and `ys` in the tile of the
        element that left last, with their positions.

        After a start column c is stepped (c - prefix) % columns times by a position, all side by side. At the end
        of a tile it is stepped by `columns` positions, unless it was one of the prefix: then it waits.
        """
        ins, columns = self.ins, self.accelerator.columns
        self.placed = Signal()
        number = Signal(range(columns + 3))
        """After a start, cycles; x takes its steps from the third on, all others a cycle later."""
        register = functools.partial(Signal, reset_less=True)
        # A step: in columns, before a line's end and over it; in rows and in positions, likewise. A line: columns, positions.
        step_x, less_x = register(_X_BITS, name="step_x"), register(signed(_X_BITS + 1), name="less_x")
        step_y, jump_y = register(_Y_BITS, name="step_y"), register(_Y_BITS, name="jump_y")
        line_x, tile_x = register(_X_BITS, name="line_x"), register(_X_BITS, name="tile_x")
        tile_y = register(_Y_BITS, name="tile_y")
        step_q, jump_q, wrap_q, line_q, tile_q, tile_rows_q, start_row_q, start_q = (
            register(POSITION_BITS, name=f"{name}_q")
            for name in ("step", "jump", "wrap", "line", "tile", "tile_rows", "start_row", "start")
        )
        self.origin = register(POSITION_BITS, name="origin")

        last = number == columns + 2
        m.d.comb += [self.placed.eq(number == columns + 1), self.busy.eq(self.valid | (number != 0))]
        with m.If(self.start):
            m.d.sync += number.eq(ins.mode != isa.FetchMode.LINEAR)
        # Multipliers stand between registers, and these settle one after the other.
        m.d.sync += [
            line_x.eq(ins.out_width * ins.stride_x),
            line_q.eq(ins.stride_y * ins.width),
            tile_x.eq(ins.advance_x * ins.stride_x),
            tile_y.eq(ins.advance_y * ins.stride_y),
            start_row_q.eq(ins.start_y * ins.width),
            tile_rows_q.eq(ins.advance_y * line_q),
            wrap_q.eq(line_q - line_x),
            start_q.eq(start_row_q + ins.start_x),
            tile_q.eq(tile_rows_q + tile_x),
        ]
        with m.If(number != 0):
            m.d.sync += number.eq(Mux(last, 0, number + 1))
        with m.If(number == 1):
            m.d.sync += [
                step_x.eq(ins.stride_x),
                less_x.eq(ins.stride_x - line_x),
                step_y.eq(0),
                jump_y.eq(ins.stride_y),
                step_q.eq(ins.stride_x),
            ]
        with m.If(number == 2):
            m.d.sync += [
                jump_q.eq(wrap_q + ins.stride_x),
                self.origin.eq(start_q - (columns - 1)),
            ]
        with m.If(self.placed):
            m.d.sync += [step_x.eq(tile_x), less_x.eq(tile_x - line_x)]
        with m.If(last):
            m.d.sync += [
                step_y.eq(tile_y),
                jump_y.eq(tile_y + ins.stride_y),
                step_q.eq(tile_q),
                jump_q.eq(wrap_q + tile_q),
            ]

        xs = [Signal(_X_BITS, name=f"x_{c}", reset_less=True) for c in range(columns)]
        ys = [Signal(_Y_BITS, name=f"y_{c}", reset_less=True) for c in range(columns)]
        qs = [Signal(POSITION_BITS, name=f"q_{c}", reset_less=True) for c in range(columns - 1)]
        for c, (x, y, q) in enumerate(zip(xs, ys, [*qs, self.origin], strict=True)):
            turns = Array((c - prefix) % columns for prefix in range(16))[ins.prefix]
            places, steps, stepped, wrapped, over, wraps = (
                Signal(shape, name=f"{name}_{c}")
                for name, shape in (
                    ("places", 1), ("steps", 1), ("stepped", 1), ("wrapped", 1),
                    ("over", signed(_X_BITS + 2)), ("wraps", 1),
                )
            )  # fmt: skip
            m.d.comb += [
                steps.eq(places | (self.advance & (tile_end & (skip <= c)))),
                over.eq(x + less_x),
                wraps.eq(over >= 0),
            ]
            m.d.sync += places.eq((number >= 2) & (number - 2 < turns))
            with m.If(self.start):
                m.d.sync += x.eq(0)
            with m.Elif(steps):
                m.d.sync += x.eq(Mux(wraps, over, x + step_x))
            with m.If(self.moves):
                m.d.sync += [stepped.eq(steps), wrapped.eq(wraps)]
            with m.If(number == 3):
                m.d.sync += y.eq(ins.start_y)
                if c < columns - 1:
                    m.d.sync += q.eq(start_q)
            with m.Elif(stepped & self.moves):
                m.d.sync += [
                    y.eq(y + Mux(wrapped, jump_y, step_y)),
                    q.eq(q + Mux(wrapped, jump_q, step_q)),
                ]
            m.d.comb += self.distance[c].eq(q - self.origin if c < columns - 1 else columns - 1)
        self.ys = ys
        return xs
