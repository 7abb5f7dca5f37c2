"""What the rows of a kind take as operand: prepared once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from amaranth.hdl import Cat, Module, Signal, Value, signed
from amaranth.lib import data

from ..delay import delayed

__all__ = ["OPERAND_BITS", "Late", "Operands", "Pairs", "Parities", "Twins"]

OPERAND_BITS = 9
"""Signed; holds s8 and u8 activations."""


class Operands(Protocol):
    """How the operands [column][i] reach the rows of a kind: `delay(i)` cycles later than a chunk's weights."""

    delay: Callable[[int], int]

    def layout(self, columns: int, depth: int) -> data.ArrayLayout:
        """Of what the rows take."""

    def prepared(self, m: Module, operand: Sequence[Sequence[Value]]) -> Value:
        """What the rows take, 1 + delay(i) cycles after `operand`."""


class Late:
    """Operands as they are, or the low `bits` of them."""

    def __init__(self, delay: Callable[[int], int], bits: int = OPERAND_BITS):
        self.delay, self.bits = delay, bits

    def layout(self, columns: int, depth: int) -> data.ArrayLayout:
        return data.ArrayLayout(data.ArrayLayout(signed(self.bits), depth), columns)

    def prepared(self, m: Module, operand: Sequence[Sequence[Value]]) -> Value:
        return Cat(
            delayed(m, value[: self.bits], 1 + self.delay(i))
            for column in operand
            for i, value in enumerate(column)
        )


class Pairs:
    """Operands of two columns in one word, left + (right << shift).

    An odd column is paired with zeros. Operands must be of `bits` bits, signed.
    """

    def __init__(self, delay: Callable[[int], int], bits: int, shift: int):
        self.delay, self.bits, self.shift = delay, bits, shift

    def layout(self, columns: int, depth: int) -> data.ArrayLayout:
        pair = signed(self.shift + self.bits + 1)
        return data.ArrayLayout(data.ArrayLayout(pair, depth), -(-columns // 2))

    def prepared(self, m: Module, operand: Sequence[Sequence[Value]]) -> Value:
        words = []
        for c in range(0, len(operand), 2):
            for i, left in enumerate(operand[c]):
                right = operand[c + 1][i] if c + 1 < len(operand) else Signal(signed(self.bits))
                left, right = left[: self.bits].as_signed(), right[: self.bits].as_signed()
                word = (left + (right << self.shift))[: self.shift + self.bits + 1]
                words.append(delayed(m, word, 1 + self.delay(i)))
        return Cat(words)


class Parities:
    """Operands of 8 bits, and above each the lowest bit of the one that came `later` cycles before it."""

    BITS = 8

    def __init__(self, delay: Callable[[int], int], later: int):
        self.delay, self.later = delay, later

    def layout(self, columns: int, depth: int) -> data.ArrayLayout:
        return data.ArrayLayout(data.ArrayLayout(self.BITS + 1, depth), columns)

    def prepared(self, m: Module, operand: Sequence[Sequence[Value]]) -> Value:
        words = []
        for column in operand:
            for i, value in enumerate(column):
                byte = delayed(m, value[: self.BITS], 1 + self.delay(i))
                words += [byte, delayed(m, byte[0], self.later)]
        return Cat(words)


class Twins:
    """Of elements 2 * j and 2 * j + 1 of a column, word j: their sum, and above it their difference (the first less the
    second). Words come as elements do: word j delay(j) cycles after the weights."""

    def __init__(self, delay: Callable[[int], int]):
        self.delay = delay

    def layout(self, columns: int, depth: int) -> data.ArrayLayout:
        return data.ArrayLayout(data.ArrayLayout(2 * (OPERAND_BITS + 1), depth // 2), columns)

    def prepared(self, m: Module, operand: Sequence[Sequence[Value]]) -> Value:
        bits = OPERAND_BITS + 1
        words = []
        for column in operand:
            for j, (one, other) in enumerate(zip(column[::2], column[1::2], strict=True)):
                word = Cat((one + other)[:bits], (one - other)[:bits])
                words.append(delayed(m, word, 1 + self.delay(j)))
        return Cat(words)
