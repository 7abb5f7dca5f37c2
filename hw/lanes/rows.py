"""A row of the array: one lane (a pair of Fixed-8 lanes) over all columns, with its accumulators."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ...arch.schemes import Scheme, storage_bits
from .binary import Binary
from .fixed4 import Fixed4
from .fixed4_quads import Fixed4Quads
from .fixed4_triples import Fixed4Triples
from .fixed8 import Fixed8Pair
from .fixed8_luts import Fixed8Luts
from .operands import OPERAND_BITS, Operands
from .pot4 import PoT4
from .sp2_4 import SP2
from .sums import added, register
from .ternary import Ternary

__all__ = ["ACCUMULATOR_BITS", "KINDS", "LATENCY", "OTHERS", "Kind", "Row"]

ACCUMULATOR_BITS = 27
CHUNK_LATENCY = 7
"""Cycles from weights to the chunk sums of a kind, with one tree stage."""
LATENCY = CHUNK_LATENCY + 1
"""Cycles from a block's last chunk at the inputs to its final value in `sums`, with one tree stage; each more is one more."""


class Kind(Protocol):
    """What a lane kind's file provides. Its class docstring states the legal ranges and the cost (LUTs of UltraScale+ per product,
    accumulators included, in rows of depth 16). Within these ranges sums are those of `arch.schemes.decode`'s codes times operands."""

    lanes: int
    """Lanes in one row module."""
    maximum: bool
    """Whether rows of this kind can accumulate by maximum."""
    carries: bool
    """Whether the lowest bit of a chunk sum is a carry, to be added to the bits above it."""

    operands: Operands

    def chunk_sums(
        self, m: Module, operand: Sequence[Sequence[Value]], codes: Sequence[Sequence[Value]], registers: int
    ) -> list[list[Value]]:
        """Registered chunk sums [lane][column], CHUNK_LATENCY + registers cycles after `codes` [lane][i] (stored bit patterns,
        `arch.schemes`), of `operand` (as `operands` prepares it). One chunk per cycle. There may be more columns
        than the array has: operands that are zero. `registers` are those in the tree that joins the sums of parts of the depth."""


KINDS: dict[Scheme, Kind] = {
    Scheme.FIXED8: Fixed8Pair(),
    Scheme.FIXED4: Fixed4(),
    Scheme.POT4: PoT4(),
    Scheme.SP2_4: SP2(),
    Scheme.TERNARY: Ternary(),
    Scheme.BINARY: Binary(),
}
"""The usual kind of each scheme."""
OTHERS: dict[str, Kind] = {
    "fixed8_luts": Fixed8Luts(),
    "fixed4_triples": Fixed4Triples(),
    "fixed4_quads": Fixed4Quads(),
}
"""Others, by the field of `Lanes` that counts them: Fixed-8 without multipliers, Fixed-4 with."""


@functools.cache
def arithmetic(kind: Scheme, other: str, operand_bits: int) -> Kind:
    """How a row multiplies: kinds that are asked for twice are the same object."""
    if kind == Scheme.FIXED4 and not other and operand_bits != OPERAND_BITS:
        return Fixed4(operand_bits)
    return OTHERS[other] if other else KINDS[kind]


class Row(wiring.Component):
    """Dot products of one row's weights with every column's operand, accumulated over chunks.

    In a cycle with `valid`, `weights` (per lane `depth` codes, lane 0 and code 0 lowest) are one chunk; element i of
    its `operand`, as the kind's `operands` prepares it, comes `delay(i)` cycles later; `first` restarts the
    accumulators with it. `sums[lane][column]` includes the chunk LATENCY + tree_stages - 1 cycles later, and keeps its value in cycles
    without a valid chunk. One chunk per cycle; no back-pressure. Operands are -128..255 unless the kind, or `operand_bits` of Fixed-4, allow less;
    sums must fit 27 bits (proved per row by the quantizer).
    A reset leaves chunks that are under way; they are in the accumulators as many cycles later.
    With `maximum` (kinds that have it) the accumulators take the largest chunk sum instead of adding. With `shift` (rows for
    `digits`) they are multiplied by 16 before the chunk is added.
    """

    def __init__(
        self,
        kind: Scheme,
        columns: int,
        depth: int,
        other: str = "",
        operand_bits: int = OPERAND_BITS,
        digits: bool = False,
        tree_stages: int = 1,
    ):
        self.kind = kind
        self.columns = columns
        self.depth = depth
        self.arithmetic = arithmetic(kind, other, operand_bits)
        self.lanes = self.arithmetic.lanes
        self.digits = digits
        self.registers = tree_stages - 1
        ports = {
            "operand": In(self.arithmetic.operands.layout(columns, depth)),
            "weights": In(self.lanes * depth * storage_bits(kind)),
            "valid": In(1),
            "first": In(1),
            "sums": Out(data.ArrayLayout(data.ArrayLayout(signed(ACCUMULATOR_BITS), columns), self.lanes)),
        }
        if self.arithmetic.maximum:
            ports["maximum"] = In(1)
        if digits:
            ports["shift"] = In(1)
        super().__init__(ports)

    def elaborate(self, platform):
        m = Module()
        bits = storage_bits(self.kind)
        operand = [[word[i] for i in range(len(word))] for word in self.operand]
        lane_bits = self.depth * bits
        codes = [
            [self.weights[lane * lane_bits + i * bits :][:bits] for i in range(self.depth)]
            for lane in range(self.lanes)
        ]
        chunks = self.arithmetic.chunk_sums(m, operand, codes, self.registers)

        valid = self.delayed(m, self.valid, "valid")
        first = self.delayed(m, self.first, "first")
        if self.arithmetic.maximum:
            maximum = self.delayed(m, self.maximum, "maximum")
            clear = first | maximum
        else:
            clear = first
        if self.digits:
            shift = self.delayed(m, self.shift, "shift")
        for lane in range(self.lanes):
            for column in range(self.columns):
                chunk = chunks[lane][column]
                accumulator = Signal(
                    signed(ACCUMULATOR_BITS), name=f"accumulator_{lane}_{column}", reset_less=True
                )
                enable = valid
                if self.arithmetic.maximum:
                    # While accumulating by maximum it holds a chunk sum.
                    larger = chunk > accumulator[: len(chunk)].as_signed()
                    enable = valid & (~maximum | first | larger)
                held = accumulator
                if self.digits:
                    held = Mux(shift, (accumulator << 4)[:ACCUMULATOR_BITS].as_signed(), accumulator)
                held = Mux(clear, 0, held)
                step = chunk + held
                if self.arithmetic.carries:
                    step = added(chunk[1:].as_signed(), held, chunk[0])
                m.d.sync += accumulator.eq(Mux(enable, step, accumulator))
                m.d.comb += self.sums[lane][column].eq(accumulator)
        return m

    def delayed(self, m: Module, value: Value, name: str) -> Value:
        """A control bit as it accompanies the chunk sums."""
        for stage in range(1, CHUNK_LATENCY + self.registers + 1):
            value = register(m, value, f"{name}_{stage}")
        return value
