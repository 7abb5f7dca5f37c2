"""Sums of signed terms in LUTs: what the products of all kinds without multiplier are made of.

A term is a choice among shifts of an operand, with a sign. It is added to a running sum by one LUT of six inputs for
each bit: at most five choose and invert, the sixth is the sum's, and the carry chain does the rest. So a column's
terms are added one after the other, TAPS of them in STAGES cycles, and the operands come in that order. A negative
term is its one's complement; the ones that complete them are counted once for all columns, where the sum begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Self

from amaranth.hdl import C, Cat, Module, Signal, Value
from amaranth.utils import bits_for

from ..delay import delayed
from .operands import OPERAND_BITS
from .sums import groups, register, total, tree

__all__ = ["LATENCY", "Digit", "Term", "delay", "digit", "largest", "masked", "term_sums"]

TAPS = 8
"""Terms of a running sum."""
STAGE_TAPS = 2
"""Terms added in a cycle."""
LATENCY = 1 + TAPS // STAGE_TAPS + 2
"""From codes to the sums of `term_sums` without more registers: decoding, the running sums, and two cycles to join these."""


def delay(i: int) -> int:
    """Cycles by which operand i comes after the codes."""
    return 1 + i % TAPS // STAGE_TAPS


class Term:
    """A weight or its digit, decoded once for all columns; the attributes are what was decoded."""

    negative: Value

    def registered(self, m: Module, name: str) -> Self:
        """The same a cycle later."""
        parts = vars(self).items()
        return type(self)(**{part: register(m, value, f"{name}_{part}") for part, value in parts})

    def limit(self, operand: Value) -> int:
        """The largest magnitude of the term."""
        raise NotImplementedError

    def inverted(self, m: Module, operand: Value) -> Value:
        """The term's value (signed), or its one's complement where negative."""
        raise NotImplementedError


class Digit(Term):
    """x where `one`, 2 * x where `two`, else 0; negated if `negative`. At most one of `one` and `two` is set."""

    def __init__(self, *, one: Value, two: Value, negative: Value):
        self.one, self.two, self.negative = one, two, negative

    def limit(self, operand: Value) -> int:
        return 2 * largest(operand)

    def inverted(self, m: Module, operand: Value) -> Value:
        # Masks instead of multiplexers: simulators make branches of those, which random weights defeat.
        bits = len(operand) + 1
        value = masked(Cat(C(0, 1), operand), self.two) | masked(Cat(operand, operand[-1]), self.one)
        return (value ^ self.negative.replicate(bits)).as_signed()


def digit(low: Value | int, middle: Value, high: Value) -> Digit:
    """low + middle - 2 * high: a digit of radix 4 (Booth)."""
    low = Value.cast(low)
    return Digit(one=low ^ middle, two=(low == middle) & (high ^ low), negative=high)


def masked(value: Value, bit: Value) -> Value:
    """The bits of `value` where `bit` is set, else 0."""
    return value & bit.replicate(len(value))


def term_sums(
    m: Module,
    operand: Sequence[Sequence[Value]],
    codes: Sequence[Value],
    registers: int,
    terms: Callable[[Value], Mapping[int, Term]],
) -> list[Signal]:
    """Per column, LATENCY + registers cycles after `codes`: the sum over i and shifts s of terms(codes[i])[s](x[i]) << s.

    `operand` [column][i], which is what `terms` multiply, comes delay(i) cycles after the codes.
    """
    shifts = list(terms(codes[0]))
    carries = {
        shift: [
            register(m, total([terms(code)[shift].negative for code in group]), f"carries_{shift}_{at}")
            for at, group in enumerate(groups(codes, TAPS))
        ]
        for shift in shifts
    }
    lane = [terms(delayed(m, code, delay(i) - 1)) for i, code in enumerate(codes)]
    planes = {
        shift: [term[shift].registered(m, f"term_{shift}_{i}") for i, term in enumerate(lane)]
        for shift in shifts
    }
    return [column_sum(m, x, planes, carries, registers, f"column_{c}") for c, x in enumerate(operand)]


def column_sum(
    m: Module,
    operand: Sequence[Value],
    planes: Mapping[int, Sequence[Term]],
    carries: Mapping[int, Sequence[Value]],
    registers: int,
    name: str,
) -> Signal:
    """One column of `term_sums`."""
    joined = {}
    for shift, plane in planes.items():
        sums = []
        for at, taps in enumerate(groups(list(zip(operand, plane, strict=True)), TAPS)):
            sums.append(running_sum(m, taps, carries[shift][at], f"{name}_shift_{shift}_{at}"))
        joined[shift] = tree(m, sums, registers, f"{name}_tree_{shift}")
    return register(m, digits_total(m, joined, name), f"{name}_sum")


def running_sum(m: Module, taps: Sequence[tuple[Value, Term]], start: Value, name: str) -> Value:
    """The sum of `start`, which counts the negative terms, and the terms, TAPS / STAGE_TAPS cycles after `start`."""
    limit, count = taps[0][1].limit(taps[0][0]), 0
    for stage in range(TAPS // STAGE_TAPS):
        for x, term in taps[stage * STAGE_TAPS :][:STAGE_TAPS]:
            count += 1
            # Of the terms that are still to come, each may have been counted.
            bits = bits_for(limit * count + len(taps) - count) + 1
            start = (start + term.inverted(m, x))[:bits].as_signed()
        start = register(m, start, f"{name}_{stage}")
    return start


def largest(operand: Value) -> int:
    """Magnitude of an operand: of 9 bits hold s8 and u8 codes."""
    return 255 if len(operand) == OPERAND_BITS else 1 << len(operand) - 1


def digits_total(m: Module, joined: Mapping[int, Value], name: str) -> Value:
    """The sum of the values shifted by their keys (ascending), two digits in the first cycle."""
    pairs = []
    for i, pair in enumerate(groups(list(joined.items()), 2)):
        pairs.append((pair[0][0], register(m, shifted_sum(pair), f"{name}_digits_{i}")))
    return shifted_sum(pairs)


def shifted_sum(values: Sequence[tuple[int, Value]]) -> Value:
    """The sum of (shift, value), in units of the first shift."""
    (base, low), *rest = values
    for shift, value in rest:
        apart = shift - base
        low = Cat(low[:apart], (low[apart:].as_signed() + value)).as_signed()
    return low
