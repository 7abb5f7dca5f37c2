"""Fixed-8: two lanes share a multiplier."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Cat, Module, Value

from ..delay import delayed
from ..shared import Shared
from .chain import PAIR, TAPS, Chain, Packing
from .operands import Late
from .sums import register, tree

__all__ = ["Fixed8Pair", "chain_delay", "chain_sums", "late_codes"]


def chain_delay(i: int) -> int:
    """Cycles by which operand i comes after the weights."""
    return Chain.DELAYS[i % TAPS]


class Fixed8Pair:
    """Weights -128..127 of two lanes, times one activation -128..255, in cascades of multipliers (`Chain`).

    Cost: half a multiplier and 6.1 LUTs per product.
    """

    lanes = 2
    maximum = True
    carries = False
    operands = Late(chain_delay)

    def chunk_sums(self, m: Module, operand, codes, registers: int) -> list[list[Value]]:
        late = late_codes(m, codes)
        columns = [chain_sums(m, PAIR, x, late, registers, f"column_{c}") for c, x in enumerate(operand)]
        return [list(lane) for lane in zip(*columns, strict=True)]


def late_codes(m: Module, codes: Sequence[Sequence[Value]]) -> list[list[Value]]:
    """Codes [lane][i] when a chain takes them."""
    return [[delayed(m, code, chain_delay(i)) for i, code in enumerate(lane)] for lane in codes]


def chain_sums(
    m: Module, packing: Packing, operand: Sequence[Value], codes, registers: int, name: str
) -> list[Value]:
    """The fields' sums over all elements, registered, from as many chains as are needed: signed. Their tree has `registers` more."""
    words = []
    for start in range(0, len(operand), TAPS):
        taps = slice(start, start + TAPS)
        m.submodules[f"{name}_chain_{start}"] = chain = Shared(Chain, packing)
        m.d.comb += [
            chain.low.eq(Cat(codes[0][taps])),
            chain.high.eq(Cat(codes[1][taps])),
            chain.operand.eq(Cat(operand[taps])),
        ]
        words.append(packing.split(chain.sum))
    *lower, highest = (
        tree(m, fields, registers, f"{name}_tree_{i}") for i, fields in enumerate(zip(*words, strict=True))
    )
    # The half ranges together are half the range of the sum: the number of chains is a power of two.
    sums = [Cat(field[:-1], ~field[-1]).as_signed() for field in lower]
    return [register(m, value, f"{name}_{i}") for i, value in enumerate([*sums, highest])]
