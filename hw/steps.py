"""The drain's steps: which outputs of which tile are drained in a cycle."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..arch import isa
from ..arch.accelerator import Accelerator
from .compute import BlockLayout
from .decode import instruction_layout
from .delay import delayed
from .ports import ROW_BITS
from .weights import PART_BITS, word_parts

__all__ = ["Steps"]


class Steps(wiring.Component):
    """Step counters: a step in a cycle with `valid`, some cycles before its p0; the first one of a block is in the cycle after `block`."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        super().__init__(
            {
                "block": In(BlockLayout),
                "slots": In(instruction_layout(isa.Opcode.MATRIX)).array(2),
                "valid": Out(1),
                "slot": Out(1),
                "following": Out(1),  # the slot in the cycle after
                "last": Out(1),
                "tile_last": Out(1),
                "step": Out(8),
                "output": Out(ROW_BITS),
                "tile": Out(18),
                # KEYS, VALUES: the block of lanes, and the place in it.
                "lane_block": Out(ROW_BITS),
                "lane_part": Out(PART_BITS),
                # VALUES: the word of tokens, and the tile in it.
                "word": Out(18),
                "part": Out(range(word_parts(accelerator))),
                "live": Out(accelerator.columns),
            }
        )

    def elaborate(self, platform):
        m = Module()
        columns = self.accelerator.columns
        active, second, block = Signal(), Signal(), Signal(BlockLayout)
        twice, positions = self.field(m, "second"), self.field(m, "positions")
        before_last, step_last, advance = Signal.like(self.step), Signal(), Signal()
        tile_end, end = Signal(), Signal()
        """Whether the step is the last one of its tile, and of its instruction: registers, as `step_last`."""
        m.d.comb += [
            advance.eq(active & (second | ~twice)),
            self.following.eq(self.slot ^ (advance & end)),
            self.valid.eq(active & ~second),
            self.last.eq(end),
            self.tile_last.eq(tile_end),
        ]
        self.lanes(m, advance, tile_end, end)
        first = Signal(18)
        for column in range(columns):
            m.d.comb += self.live[column].eq(first + column < positions)
        m.d.sync += second.eq(active & ~second & twice)
        with m.If(advance):
            m.d.sync += [
                self.step.eq(Mux(step_last, 0, self.step + 1)),
                step_last.eq(self.step == before_last),
                tile_end.eq((self.step == before_last) & block.tile_end),
                end.eq((self.step == before_last) & block.end),
                self.output.eq(Mux(tile_end, 0, self.output + 1)),
            ]
            with m.If(step_last):
                m.d.sync += active.eq(0)
            with m.If(tile_end):
                last = self.part == word_parts(self.accelerator) - 1
                m.d.sync += [
                    self.tile.eq(Mux(end, 0, self.tile + 1)),
                    first.eq(Mux(end, 0, first + columns)),
                    self.part.eq(Mux(end | last, 0, self.part + 1)),
                    self.word.eq(Mux(end, 0, self.word + last)),
                ]
        m.d.sync += self.slot.eq(self.following)
        with m.If(self.block.valid):
            m.d.sync += [
                active.eq(1),
                block.eq(self.block),
                step_last.eq(self.block.step_top == 0),
                tile_end.eq((self.block.step_top == 0) & self.block.tile_end),
                end.eq((self.block.step_top == 0) & self.block.end),
                before_last.eq(self.block.step_top - 1),
            ]
        return m

    def lanes(self, m: Module, advance, tile_end, end) -> None:
        """The place of keys (stepped at a tile's end) or values (at every step) in the blocks of lanes; it starts anew
        with the instruction or with the tile."""

        part, fresh, over = Signal(PART_BITS), Signal(init=1), Signal()
        keys = self.field(m, "destination") == isa.Destination.KEYS
        restart = Mux(keys, end, tile_end)
        m.d.comb += [
            self.lane_part.eq(Mux(fresh, self.field(m, "dst_part"), part)),
            over.eq((~keys | tile_end) & (self.lane_part == self.field(m, "dst_block", 1))),
        ]
        with m.If(advance):
            m.d.sync += [
                fresh.eq(restart),
                part.eq(Mux(over, 0, self.lane_part + (~keys | tile_end))),
                self.lane_block.eq(Mux(restart, 0, Mux(over, self.lane_block + 1, self.lane_block))),
            ]

    def field(self, m: Module, name: str, less: int = 0) -> Value:
        """A field of the step's instruction, less a constant. A slot is filled long before its first step."""
        first, second = (slot[name] for slot in self.slots)
        if less:
            first, second = (delayed(m, (value - less)[: len(value)], 1) for value in (first, second))
        return delayed(m, Mux(self.following, second, first), 1)
