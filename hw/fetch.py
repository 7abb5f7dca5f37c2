"""Operand fetch: reads what a MATRIX instruction's array needs from the scratchpad into the operand buffer.

A chunk of a CONV is served in units: all columns whose pixels lie within `columns` positions of each other, in two
adjacent rows. Rows that were read last are kept, and a unit that needs none lets the next one's row be read with it,
so that the taps of a window with stride 1 take a cycle each.
"""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..arch import isa
from ..arch.accelerator import Accelerator
from .align import Align, Source, element_layout
from .decode import instruction_layout
from .delay import delayed
from .divide import divided, folded
from .operand import WriteSignature, aligned, count_bits
from .ports import ROW_BITS, ReadPort
from .walk import POSITION_BITS, TILE_BITS, Walk

__all__ = ["Fetch"]

_PORT_CYCLES = 2
"""From a grant to its row."""


class Fetch(wiring.Component):
    """Accepts an instruction when the previous one's last row is requested. One element per cycle.

    Padding needs no read. While a request is not granted the address pipeline stands; rows already granted go on.
    `written` counts chunks in the buffer since reset (up to the end of the last one that is complete), 15 cycles after their last element left the walk;
    `counts` is high in the cycle before it rises.
    JOIN takes a column at a time; the buffer must hold the chunks of one window row.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        super().__init__(
            {
                "i": In(stream.Signature(instruction_layout(isa.Opcode.MATRIX))),
                "halt": In(1),
                "busy": Out(1),
                "read": Out(ReadPort(accelerator, accelerator.private)),
                "write": Out(WriteSignature(accelerator)),
                "freed": In(count_bits(accelerator)),
                "written": Out(count_bits(accelerator)),
                "counts": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.walk = walk = Walk(self.accelerator)
        m.submodules.align = align = Align(self.accelerator)
        self.ins = ins = Signal(instruction_layout(isa.Opcode.MATRIX), reset_less=True)
        start = Signal()
        start_walk = delayed(m, start, 1, reset_less=False)
        with m.If(start):
            m.d.sync += ins.eq(self.i.payload)

        self.moves, self.flows, self.up, self.entered = (
            Signal(name=name) for name in ("moves", "flows", "up", "entered")
        )
        """The request leaves; the rows' reads go on; the stages before them move on; there are elements between walk and tap."""
        used, most = (walk.index - self.freed)[: len(walk.index)], self.accelerator.operand_chunks
        room, step = Signal(init=1), Mux(ins.private, self.accelerator.private, 1)
        m.d.sync += room.eq(Mux(walk.advance, used + (step << 1) <= most, used + step <= most))
        m.d.comb += [walk.start.eq(start_walk), walk.ins.eq(ins)]
        tap = self.taps(m, walk, room)
        unit = self.units(m, tap)
        rows = self.rows(m, unit, start_walk)
        request = self.requests(m, rows)

        granted = Signal()
        m.d.comb += [
            self.read.valid.eq(self.asks),
            self.read.row.eq(request.row),
            self.moves.eq(~self.asks | self.read.ready),
            granted.eq(request.valid & self.moves),
            align.valid.eq(delayed(m, granted, _PORT_CYCLES, reset_less=False)),
            align.element.eq(delayed(m, request.element, _PORT_CYCLES)),
            align.row.eq(self.read.data),
        ]
        wiring.connect(m, align.write, wiring.flipped(self.write))
        private = self.accelerator.private
        m.d.comb += self.counts.eq(align.counts)
        with m.If(align.counts):
            wide = aligned(self.written, private) + private
            m.d.sync += self.written.eq(Mux(align.write.wide, wide, self.written + 1))
        idle = Signal(init=1)
        behind = Cat(stage.valid for stage in (tap, unit, *self.deciding, rows)).any()
        behind = behind | walk.busy | start_walk | self.entered
        m.d.sync += idle.eq(~start & ~behind & (self.flows | ~self.current.valid))
        m.d.comb += [
            self.busy.eq(~idle),
            self.i.ready.eq(idle & ~self.halt),
            start.eq(self.i.valid & self.i.ready),
        ]
        return m

    def taps(self, m: Module, walk: Walk, room):
        """The walk's elements four cycles later; a chunk of a CONV stays until all its columns are served."""
        a, ins = self.accelerator, self.ins
        byte_bits = exact_log2(a.depth)
        linear, conv, join = (ins.mode == mode for mode in isa.FetchMode)
        tap = _Stage(
            {
                "element": element_layout(a),
                "inside": a.columns,
                "pending": a.columns,
                "fresh": 1,
                "more": a.columns,
                "breaks": a.columns,
                "tile": TILE_BITS,
                "word": range(a.columns),
                "distance": data.ArrayLayout(signed(TILE_BITS), a.columns),
                "words": data.ArrayLayout(range(a.columns), a.columns),
                "offset": ROW_BITS,
            }
        )
        takes = Signal()
        m.d.comb += [
            takes.eq(self.up & ~(tap.valid & (tap.pending & tap.more).any())),
            walk.advance.eq(walk.valid & room & takes),
            walk.moves.eq(takes),
        ]
        place = self.place(m, walk, takes)
        shared = {"element": element_layout(a), "inside": a.columns, "tile": TILE_BITS, "offset": ROW_BITS}
        part = _Stage(shared)
        m.d.comb += self.entered.eq(self.shown | place.valid | part.valid)
        tile, word = divided(m, place.position, a.columns, "position", sign=True, moves=takes)
        apart = [
            divided(m, value, a.columns, f"distance_{c}", sign=True, moves=takes)
            for c, value in enumerate(place.distance)
        ]
        distance = [tiles for tiles, _ in apart]
        breaks = [distance[c] != distance[c - 1] for c in range(1, a.columns)]
        behind = [new & part.inside[c:].any() for c, new in enumerate(breaks, 1)]

        width = Signal(16, reset_less=True)  # of an image row with a chunk in front of it
        low, high = Signal(signed(17)), Signal(signed(18))  # bytes before the image row's begin and end
        m.d.sync += width.eq(ins.width + a.depth)
        m.d.comb += [low.eq(a.depth - place.x), high.eq(width - place.x)]
        row_inside = (place.x >= 0) & ((place.x & ~(a.depth - 1)) < ins.width)

        def clip(value):
            whole = value[byte_bits:-1].any()
            return Mux(value < 0, 0, Mux(whole, a.depth, value[:byte_bits]))

        with m.If(takes):
            m.d.sync += [
                part.valid.eq(place.valid),
                part.element.eq(place.element),
                part.inside.eq(Mux(conv, place.inside, linear | (join & place.y_inside & row_inside))),
                part.tile.eq(place.tile),
                part.offset.eq(Mux(join, place.x >> byte_bits, place.offset)),
                part.element.pad_value.eq(ins.pad_value),
                part.element.join.eq(join),
                part.element.private.eq(ins.private),
                part.element.shift.eq(place.x),
                part.element.first_byte.eq(clip(low)),
                part.element.last_byte.eq(Mux(place.y_inside, clip(high), 0)),
                tap.valid.eq(part.valid),
                tap.element.eq(part.element),
                tap.inside.eq(part.inside),
                tap.pending.eq(part.inside),
                tap.fresh.eq(1),
                # Columns behind which there are others to be served in a later unit.
                *(tap.more[c].eq(conv & Cat(behind[c:]).any()) for c in range(a.columns - 1)),
                tap.more[-1].eq(0),
                tap.breaks.eq(Cat(1, *breaks)),
                tap.tile.eq(Mux(linear, part.tile, tile)),
                tap.word.eq(Mux(linear, 0, word)),
                *(tap.distance[c].eq(Mux(conv, tiles, 0)) for c, (tiles, _) in enumerate(apart)),
                *(tap.words[c].eq(words) for c, (_, words) in enumerate(apart)),
                tap.offset.eq(part.offset),
            ]
        self.takes = takes
        return tap

    def place(self, m: Module, walk: Walk, takes):
        """What the walk shows, a cycle later."""
        a, ins = self.accelerator, self.ins
        conv, join = (ins.mode == mode for mode in (isa.FetchMode.CONV, isa.FetchMode.JOIN))
        place = _Stage(
            {
                "element": element_layout(a),
                "inside": a.columns,
                "y_inside": 1,
                "x": signed(16),
                "tile": TILE_BITS,
                "position": POSITION_BITS,
                "distance": data.ArrayLayout(POSITION_BITS, a.columns),
                "offset": ROW_BITS,
            }
        )
        self.shown = Signal()
        """Whether what the walk shows is an element."""
        position = Signal(signed(POSITION_BITS))
        m.d.comb += position.eq(Mux(conv, walk.position, walk.y))
        column = Cat((walk.column == c) & walk.writes for c in range(a.columns))
        with m.If(takes):
            m.d.sync += [
                self.shown.eq(walk.advance),
                place.valid.eq(self.shown),
                place.inside.eq(walk.inside),
                place.y_inside.eq(walk.visible & (walk.y < ins.height)),
                place.x.eq(walk.x),
                place.tile.eq(walk.tile),
                place.position.eq(folded(position)),
                *(place.distance[c].eq(folded(value)) for c, value in enumerate(walk.distance)),
                place.offset.eq(walk.offset),
                place.element.writes.eq(Mux(join, column, -1)),
                place.element.counts.eq(walk.counts),
                place.element.address.eq(walk.address),
                place.element.odd.eq(walk.odd),
            ]
        return place

    def units(self, m: Module, tap):
        """From the first column that is not served, all up to one that is too far away."""
        a, conv = self.accelerator, self.ins.mode == isa.FetchMode.CONV
        linear = self.ins.mode == isa.FetchMode.LINEAR
        first, now = (Signal(a.columns, name=name) for name in ("first", "now"))
        before = [tap.pending[:c].any() for c in range(a.columns)]
        for c in range(a.columns):
            far = Cat(tap.breaks[i] & before[i] for i in range(1, c + 1)).any() if c else 0
            m.d.comb += [first[c].eq(tap.pending[c] & ~before[c]), now[c].eq(tap.pending[c] & ~far)]
        unit = _Stage(
            {
                "element": element_layout(a),
                "low": TILE_BITS,
                "high": TILE_BITS,
                "needs_low": 1,
                "needs_high": 1,
                "offset": ROW_BITS,
            }
        )
        words = [tap.word + word for word in tap.words]
        high = Cat(value >= a.columns for value in words)
        distance = Signal(signed(TILE_BITS))
        m.d.comb += distance.eq(reduce(or_, (Mux(first[c], tap.distance[c], 0) for c in range(a.columns))))
        with m.If(self.up):
            m.d.sync += [
                unit.valid.eq(tap.valid),
                unit.element.eq(tap.element),
                unit.low.eq(tap.tile + distance),
                unit.high.eq((Cat(1, tap.tile) + Cat(1, distance)) >> 1),
                unit.needs_low.eq(Mux(conv, (now & ~high).any(), tap.inside[0])),
                unit.needs_high.eq(conv & (now & high).any()),
                unit.offset.eq(tap.offset),
                unit.element.counts.eq(tap.element.counts & self.takes),
                unit.element.padding.eq(Mux(conv, ~tap.inside, 0)),
                unit.element.first.eq(Mux(conv, tap.word, 0)),
            ]
            for c in range(a.columns):
                m.d.sync += unit.element.words[c].eq(
                    Mux(conv, words[c] - Mux(high[c], a.columns, 0), Mux(linear, c, tap.word))
                )
            with m.If(conv):
                m.d.sync += unit.element.writes.eq(now | Mux(tap.fresh, ~tap.inside, 0))
            with m.If(~self.takes):
                m.d.sync += [tap.pending.eq(tap.pending & ~now), tap.fresh.eq(0)]
        return unit

    def rows(self, m: Module, unit, start):
        """Which rows a unit still has to read, 0..2, `low` first, and from where its words then come."""
        ins, layout = self.ins, element_layout(self.accelerator)
        conv = ins.mode == isa.FetchMode.CONV
        near = _Stage(
            {
                "element": layout,
                "low": TILE_BITS,
                "high": TILE_BITS,
                "needs_low": 1,
                "needs_high": 1,
                "offset": ROW_BITS,
                # Which of the last two rows are of this offset; which of them are the unit's.
                "newer_same": 1,
                "low_older": 1,
                "low_newer": 1,
                "high_older": 1,
                "high_newer": 1,
                "row": ROW_BITS,
                "base": ROW_BITS,
                "base_high": ROW_BITS,
            }
        )
        misses_low, misses_high, both, none = (
            Signal(name=name) for name in ("misses_low", "misses_high", "both", "none")
        )
        m.d.comb += [
            misses_low.eq(near.needs_low & ~near.low_newer & ~near.low_older),
            misses_high.eq(near.needs_high & ~near.high_newer & ~near.high_older),
            # A row that is to be used with one that is read must be the last before it.
            both.eq(
                (misses_low & near.needs_high & ~near.high_newer)
                | (misses_high & near.needs_low & ~near.low_newer)
            ),
            none.eq(~misses_low & ~misses_high),
        ]
        kept = self.kept(m, near, unit, start, near.valid & conv & ~none, both, both | ~misses_low)
        base, base_high = (Signal(ROW_BITS, name=name, reset_less=True) for name in ("src", "src_high"))
        m.d.sync += [base.eq(ins.src), base_high.eq(ins.src + ins.src_stride)]
        with m.If(self.up):
            m.d.sync += [
                near.valid.eq(unit.valid),
                near.element.eq(unit.element),
                *(near[name].eq(unit[name]) for name in ("low", "high", "needs_low", "needs_high", "offset")),
                *(near[name].eq(conv & flag) for name, flag in kept.items()),
                near.row.eq(unit.low * ins.src_stride),
                near.base.eq(base + unit.offset),
                near.base_high.eq(base_high + unit.offset),
            ]

        # What is decided while the reads do not go on waits beside the stage.
        members = {"element": layout, "none": 1, "two": 1, "row": ROW_BITS}
        rows, spare = _Stage(members), _Stage(members)
        self.deciding = near, spare
        decided = Signal.like(rows.payload)
        low_source = Mux(misses_low & ~both, Source.ARRIVING, Source.NEWER)
        high_source = Mux(misses_high | both, Source.ARRIVING, Source.NEWER)
        m.d.comb += [
            decided.element.eq(near.element),
            decided.element.low.eq(Mux(none & ~near.low_newer, Source.OLDER, low_source)),
            decided.element.high.eq(Mux(none & ~near.high_newer, Source.OLDER, high_source)),
            decided.none.eq(none),
            decided.two.eq(both),
            decided.row.eq(Mux(misses_high & ~both, near.row + near.base_high, near.row + near.base)),
            self.up.eq(~spare.valid),
        ]
        with m.If(self.up):
            m.d.sync += spare.payload.eq(decided)
        m.d.sync += spare.valid.eq(~self.flows & (spare.valid | near.valid))
        with m.If(self.flows):
            m.d.sync += [
                rows.valid.eq(spare.valid | near.valid),
                rows.payload.eq(Mux(spare.valid, spare.payload, decided)),
            ]
        return rows

    def kept(self, m: Module, near, unit, start, changes, both, high_is_newer) -> dict:
        """The last two rows of CONV units; which of them the unit behind the one that is being decided finds, with the
        members of that stage."""
        older, newer, offset = Signal(TILE_BITS), Signal(TILE_BITS), Signal(ROW_BITS)
        older_valid, newer_valid = Signal(), Signal()
        with m.If(self.up & changes):
            m.d.sync += [
                older.eq(Mux(both, near.low, newer)),
                older_valid.eq(both | near.newer_same),
                newer.eq(Mux(high_is_newer, near.high, near.low)),
                newer_valid.eq(1),
                offset.eq(near.offset),
            ]
        with m.If(start):
            m.d.sync += [older_valid.eq(0), newer_valid.eq(0)]

        same, same_kept = unit.offset == near.offset, unit.offset == offset
        found = {"newer_same": Mux(changes, same, same_kept & newer_valid)}
        for name in ("low", "high"):
            is_low, is_high = unit[name] == near.low, unit[name] == near.high
            is_newer = unit[name] == newer
            found[f"{name}_newer"] = Mux(
                changes, same & Mux(high_is_newer, is_high, is_low), same_kept & newer_valid & is_newer
            )
            found[f"{name}_older"] = Mux(
                changes,
                same & Mux(both, is_low, near.newer_same & is_newer),
                same_kept & older_valid & (unit[name] == older),
            )
        return found

    def requests(self, m: Module, rows):
        """One read at most in each cycle: the current unit's, or where that needs none, the following unit's first."""
        ins = self.ins
        layout = element_layout(self.accelerator)
        self.current = current = _Stage({"element": layout, "none": 1, "two": 1, "row": ROW_BITS})
        request = _Stage({"element": layout, "row": ROW_BITS})
        self.asks, ahead, keep = Signal(), Signal(), Signal()
        """Whether the request reads a row; whether the next one reads that of the unit behind it; whether it reads one."""
        m.d.comb += [
            self.flows.eq(self.moves & ~(current.valid & current.two)),
            ahead.eq(current.valid & current.none & rows.valid & ~rows.none),
            keep.eq(~current.none | ahead),
        ]
        with m.If(self.moves):
            m.d.sync += [
                request.valid.eq(current.valid),
                request.element.eq(current.element),
                self.asks.eq(current.valid & keep),
                request.element.keep.eq(keep),
                request.element.serve.eq(~current.two),
                request.row.eq(Mux(current.none, rows.row, current.row)),
            ]
        with m.If(self.flows):
            m.d.sync += [
                current.valid.eq(rows.valid),
                current.element.eq(rows.element),
                current.none.eq(rows.none | (ahead & ~rows.two)),
                current.two.eq(rows.two & ~ahead),
                current.row.eq(rows.row + Mux(ahead, ins.src_stride, 0)),
            ]
            with m.If(ahead & ~rows.two):
                # The row is no longer arriving when the unit is served.
                for source in ("low", "high"):
                    before, after = getattr(rows.element, source), getattr(current.element, source)
                    m.d.sync += after.eq(Mux(before == Source.ARRIVING, Source.NEWER, Source.OLDER))
        with m.Elif(self.moves):
            m.d.sync += [current.two.eq(0), current.row.eq(current.row + ins.src_stride)]
        with m.If(self.halt):
            m.d.sync += self.asks.eq(0)
        return request


class _Stage:
    """A pipeline register: `valid`, and members that are only reset with it."""

    def __init__(self, members: dict):
        self.valid = Signal()
        self.payload = Signal(data.StructLayout(members), reset_less=True)

    def __getattr__(self, name: str):
        return getattr(self.payload, name)

    def __getitem__(self, name: str):
        return self.payload[name]
