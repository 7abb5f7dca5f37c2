"""Operand fetch: reads what a MATRIX instruction's array needs from the scratchpad into the operand buffer.

A chunk of a CONV is served in units: all columns whose pixels lie within `columns` positions of each other, in two
adjacent rows. Rows that were read last are kept, and a unit that needs none lets the next one's row be read with it,
so that the taps of a window with stride 1 take a cycle each.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
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
    `written` counts chunks in the buffer since reset (up to the end of the last one that is complete), 13 cycles after their last element left the walk;
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

        self.moves, self.flows, self.entered = Signal(), Signal(), Signal()
        """The request leaves; the stages before it move on; there are elements between walk and tap."""
        step = Mux(ins.private, self.accelerator.private, 1)
        room = (walk.index - self.freed)[: len(walk.index)] + step <= self.accelerator.operand_chunks
        m.d.comb += [walk.start.eq(start_walk), walk.ins.eq(ins)]
        tap = self.taps(m, walk, room)
        unit = self.units(m, tap)
        rows = self.rows(m, unit, start_walk)
        request = self.requests(m, rows)

        granted = Signal()
        m.d.comb += [
            self.read.valid.eq(request.valid & request.element.keep & ~self.halt),
            self.read.row.eq(request.row),
            self.moves.eq(~self.halt & (~self.read.valid | self.read.ready)),
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
        m.d.comb += [
            self.busy.eq(
                walk.busy
                | start_walk
                | self.entered
                | Cat(stage.valid for stage in (tap, unit, rows, self.current)).any()
            ),
            self.i.ready.eq(~self.busy & ~self.halt),
            start.eq(self.i.valid & self.i.ready),
        ]
        return m

    def taps(self, m: Module, walk: Walk, room):
        """The walk's elements two cycles later; a chunk of a CONV stays until all its columns are served."""
        a, ins = self.accelerator, self.ins
        byte_bits = exact_log2(a.depth)
        linear, conv, join = (ins.mode == mode for mode in isa.FetchMode)
        tap = _Stage(
            {
                "element": element_layout(a),
                "inside": a.columns,
                "breaks": a.columns,
                "tile": TILE_BITS,
                "word": range(a.columns),
                "distance": data.ArrayLayout(signed(TILE_BITS), a.columns),
                "words": data.ArrayLayout(range(a.columns), a.columns),
                "offset": ROW_BITS,
            }
        )
        self.served, self.served_all = Signal(a.columns), Signal()
        takes = self.flows & (~tap.valid | self.served_all)
        enters = walk.valid & room
        m.d.comb += walk.advance.eq(enters & takes)
        place = self.place(m, walk, enters, takes)
        shared = {"element": element_layout(a), "inside": a.columns, "tile": TILE_BITS, "offset": ROW_BITS}
        part = _Stage(shared)
        m.d.comb += self.entered.eq(place.valid | part.valid)
        tile, word = divided(m, place.position, a.columns, "position", sign=True, moves=takes)
        apart = [
            divided(m, value, a.columns, f"distance_{c}", sign=True, moves=takes)
            for c, value in enumerate(place.distance)
        ]
        distance = [tiles for tiles, _ in apart]

        low, high = Signal(signed(17)), Signal(signed(18))  # bytes before the image row's begin and end
        m.d.comb += [low.eq(a.depth - place.x), high.eq(ins.width + a.depth - place.x)]
        row_inside = (place.x >= 0) & ((place.x & ~(a.depth - 1)) < ins.width)

        def clip(value):
            return Mux(value < 0, 0, Mux(value > a.depth, a.depth, value[: byte_bits + 1]))

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
                tap.breaks.eq(Cat(1, *(distance[c] != distance[c - 1] for c in range(1, a.columns)))),
                tap.tile.eq(Mux(linear, part.tile, tile)),
                tap.word.eq(Mux(linear, 0, word)),
                *(tap.distance[c].eq(tiles) for c, (tiles, _) in enumerate(apart)),
                *(tap.words[c].eq(words) for c, (_, words) in enumerate(apart)),
                tap.offset.eq(part.offset),
            ]
        return tap

    def place(self, m: Module, walk: Walk, enters, takes):
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
        position = Signal(signed(POSITION_BITS))
        m.d.comb += position.eq(Mux(conv, walk.position, walk.y))
        column = Cat((walk.column == c) & walk.writes for c in range(a.columns))
        with m.If(takes):
            m.d.sync += [
                place.valid.eq(enters),
                place.inside.eq(walk.inside),
                place.y_inside.eq(walk.visible & (walk.y < ins.height)),
                place.x.eq(walk.x),
                place.tile.eq(walk.tile),
                place.position.eq(folded(position)),
                *(place.distance[c].eq(folded(value)) for c, value in enumerate(walk.distance)),
                place.offset.eq(walk.offset),
                place.element.writes.eq(Mux(join, column, -1)),
                place.element.counts.eq(walk.counts),
                place.element.address.eq(walk.index),
                place.element.odd.eq(walk.odd),
            ]
        return place

    def units(self, m: Module, tap):
        """From the first column that is not served, all up to one that is too far away."""
        a, conv = self.accelerator, self.ins.mode == isa.FetchMode.CONV
        linear = self.ins.mode == isa.FetchMode.LINEAR
        pending, first, now = (Signal(a.columns, name=name) for name in ("pending", "first", "now"))
        m.d.comb += pending.eq(tap.inside & ~self.served)
        found, near = Const(0, 1), Const(0, 1)
        for c in range(a.columns):
            m.d.comb += first[c].eq(pending[c] & ~found)
            near = first[c] | (near & ~tap.breaks[c])
            found = found | pending[c]
            m.d.comb += now[c].eq(pending[c] & near)
        m.d.comb += self.served_all.eq(~conv | ~(pending & ~now).any())
        unit = _Stage(
            {
                "element": element_layout(a),
                "tile": TILE_BITS,
                "distance": signed(TILE_BITS),
                "needs_low": 1,
                "needs_high": 1,
                "offset": ROW_BITS,
            }
        )
        words = [tap.word + word for word in tap.words]
        high = Cat(value >= a.columns for value in words)
        distance = 0
        for c in range(a.columns):
            distance |= Mux(first[c], tap.distance[c], 0)
        with m.If(self.flows):
            m.d.sync += [
                self.served.eq(Mux(self.served_all | ~tap.valid, 0, self.served | now)),
                unit.valid.eq(tap.valid),
                unit.element.eq(tap.element),
                unit.tile.eq(tap.tile),
                unit.distance.eq(Mux(conv, distance, 0)),
                unit.needs_low.eq(Mux(conv, (now & ~high).any(), tap.inside[0])),
                unit.needs_high.eq(conv & (now & high).any()),
                unit.offset.eq(tap.offset),
                unit.element.counts.eq(tap.element.counts & self.served_all),
                unit.element.padding.eq(Mux(conv, ~tap.inside, 0)),
                unit.element.first.eq(Mux(conv, tap.word, 0)),
            ]
            for c in range(a.columns):
                m.d.sync += unit.element.words[c].eq(
                    Mux(conv, words[c] - Mux(high[c], a.columns, 0), Mux(linear, c, tap.word))
                )
            with m.If(conv):
                m.d.sync += unit.element.writes.eq(now | Mux(self.served.any(), 0, ~tap.inside))
        return unit

    def rows(self, m: Module, unit, start):
        """Which rows a unit still has to read, 0..2, `low` first, and from where its words then come."""
        ins, conv = self.ins, self.ins.mode == isa.FetchMode.CONV
        low, high = Signal(TILE_BITS), Signal(TILE_BITS)
        older, newer, kept_offset = Signal(TILE_BITS), Signal(TILE_BITS), Signal(ROW_BITS)
        older_valid, newer_valid = Signal(), Signal()
        same = conv & (unit.offset == kept_offset)
        in_older, in_newer = older_valid & same, newer_valid & same
        low_newer, high_newer = in_newer & (low == newer), in_newer & (high == newer)
        misses_low, misses_high, beside, both = Signal(), Signal(), Signal(), Signal()
        reads = Signal(2)
        m.d.comb += [
            low.eq(unit.tile + unit.distance),
            high.eq(low + 1),
            misses_low.eq(unit.needs_low & ~low_newer & ~(in_older & (low == older))),
            misses_high.eq(unit.needs_high & ~high_newer & ~(in_older & (high == older))),
            # A row that is to be used with one that is read must be the last before it.
            beside.eq(
                (misses_low & unit.needs_high & ~high_newer) | (misses_high & unit.needs_low & ~low_newer)
            ),
            reads.eq(Mux(beside, 2, misses_low | misses_high)),
            both.eq(reads == 2),
        ]
        rows = _Stage(
            {
                "element": element_layout(self.accelerator),
                "reads": 2,
                "from_high": 1,
                "row": ROW_BITS,
                "offset": ROW_BITS,
            }
        )
        low_source = Mux(misses_low & ~both, Source.ARRIVING, Source.NEWER)
        high_source = Mux(misses_high | both, Source.ARRIVING, Source.NEWER)
        none = ~misses_low & ~misses_high
        with m.If(self.flows):
            m.d.sync += [
                rows.valid.eq(unit.valid),
                rows.element.eq(unit.element),
                rows.element.low.eq(Mux(none & ~low_newer, Source.OLDER, low_source)),
                rows.element.high.eq(Mux(none & ~high_newer, Source.OLDER, high_source)),
                rows.reads.eq(reads),
                rows.from_high.eq(misses_high & ~both),
                rows.row.eq(low * ins.src_stride),
                rows.offset.eq(unit.offset),
            ]
            with m.If(unit.valid & conv & ~none):
                m.d.sync += [
                    older.eq(Mux(both, low, newer)),
                    older_valid.eq(both | in_newer),
                    newer.eq(Mux(both | ~misses_low, high, low)),
                    newer_valid.eq(1),
                    kept_offset.eq(unit.offset),
                ]
        with m.If(start):
            m.d.sync += [older_valid.eq(0), newer_valid.eq(0)]
        return rows

    def requests(self, m: Module, rows):
        """One read at most in each cycle: the current unit's, or where that needs none, the following unit's first."""
        ins = self.ins
        layout = element_layout(self.accelerator)
        self.current = current = _Stage({"element": layout, "reads": 2, "row": ROW_BITS})
        request = _Stage({"element": layout, "row": ROW_BITS})
        row, first, ahead = Signal(ROW_BITS), Signal(ROW_BITS), Signal()
        more = current.valid & (current.reads == 2)
        m.d.comb += [
            self.flows.eq(self.moves & ~more),
            ahead.eq(current.valid & (current.reads == 0) & rows.valid & (rows.reads != 0)),
            row.eq(ins.src + rows.row + rows.offset),
            first.eq(row + Mux(rows.from_high, ins.src_stride, 0)),
        ]
        with m.If(self.moves):
            m.d.sync += [
                request.valid.eq(current.valid),
                request.element.eq(current.element),
                request.element.keep.eq((current.reads != 0) | ahead),
                request.element.serve.eq(current.reads != 2),
                request.row.eq(Mux(current.reads != 0, current.row, first)),
            ]
        with m.If(self.flows):
            m.d.sync += [
                current.valid.eq(rows.valid),
                current.element.eq(rows.element),
                current.reads.eq(rows.reads - ahead),
                current.row.eq(Mux(ahead, row + ins.src_stride, first)),
            ]
            with m.If(ahead & (rows.reads == 1)):
                # The row is no longer arriving when the unit is served.
                for source in ("low", "high"):
                    before, after = getattr(rows.element, source), getattr(current.element, source)
                    m.d.sync += after.eq(Mux(before == Source.ARRIVING, Source.NEWER, Source.OLDER))
        with m.Elif(self.moves):
            m.d.sync += [current.reads.eq(1), current.row.eq(current.row + ins.src_stride)]
        return request


class _Stage:
    """A pipeline register: `valid`, and members that are only reset with it."""

    def __init__(self, members: dict):
        self.valid = Signal()
        self._payload = Signal(data.StructLayout(members), reset_less=True)

    def __getattr__(self, name: str):
        return getattr(self._payload, name)
