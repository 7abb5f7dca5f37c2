"""Sums of terms 0, x or 2 * x with a sign: what Fixed-4 and SP2-4 products are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from amaranth.hdl import C, Cat, Module, Signal, Value

from .sums import groups, register, total

__all__ = ["Term", "add_carries", "decoded", "masked", "term_sums", "two_stage"]


class Term:
    """(x if one) | (2 * x if two), negated if `negative`. At most one of `one` and `two` is set.

    Decoded once for all columns.
    """

    def __init__(self, m: Module, name: str, *, one: Value, two: Value, negative: Value):
        self.one = decoded(1, f"{name}_one")
        self.two = decoded(1, f"{name}_two")
        self.negative = decoded(1, f"{name}_negative")
        m.d.comb += [self.one.eq(one), self.two.eq(two), self.negative.eq(negative)]


def decoded(bits: int, name: str) -> Signal:
    """A signal that synthesis keeps, so that the columns share a decoder instead of repeating it in wider LUTs."""
    return Signal(bits, name=name, attrs={"keep": 1})


def inverted(operand: Value, term: Term) -> Value:
    """The term's value, or its one's complement where negative: adding `negative` completes it."""
    # Masks instead of multiplexers: simulators make branches of those, which random weights defeat.
    bits = len(operand) + 1
    value = masked(Cat(C(0, 1), operand), term.two) | masked(Cat(operand, operand[-1]), term.one)
    return (value ^ term.negative.replicate(bits)).as_signed()


def masked(value: Value, bit: Value) -> Value:
    """The bits of `value` where `bit` is set, else 0."""
    return value & bit.replicate(len(value))


def term_sums(
    m: Module, operand: Sequence[Sequence[Value]], terms: Mapping[int, Sequence[Term]]
) -> list[Value]:
    """Chunk sums per column, three cycles later: the sum over shifts s and i of term[s][i](x[i]) << s.

    The first register holds sums of two terms, so that one term's selection shares the LUTs of the adder.
    """
    carries = add_carries(m, {shift: [term.negative for term in row] for shift, row in terms.items()})
    return [term_sum(m, x, terms, carries, f"column_{c}") for c, x in enumerate(operand)]


def term_sum(
    m: Module, operand: Sequence[Value], terms: Mapping[int, Sequence[Term]], carries: Value, name: str
) -> Signal:
    """One column of `term_sums`."""
    by_shift = []
    for shift, row in terms.items():
        values = [inverted(x, term) for x, term in zip(operand, row, strict=True)]
        partial = two_stage(m, values, f"{name}_shift_{shift}")
        by_shift.append(total(partial) << shift)
    return register(m, total([carries, *by_shift]), f"{name}_sum")


def two_stage(m: Module, values: Sequence[Value], name: str) -> list[Signal]:
    """Sums of eight values each, two cycles later: of pairs, then of four pairs."""
    pairs = [register(m, total(pair), f"{name}_pair_{i}") for i, pair in enumerate(groups(values, 2))]
    return [register(m, total(group), f"{name}_group_{i}") for i, group in enumerate(groups(pairs, 4))]


def add_carries(m: Module, negatives: Mapping[int, Sequence[Value]]) -> Signal:
    """The sum of all sign bits, shifted, two cycles later: one per row, shared by the columns."""
    counts = [
        register(m, total(bits), f"carries_{shift}_{i}") << shift
        for shift, row in negatives.items()
        for i, bits in enumerate(groups(row, 8))
    ]
    return register(m, total(counts), "carries")
