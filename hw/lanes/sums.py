"""Registers and adder trees that the lane kinds share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.utils import ceil_log2

__all__ = ["added", "groups", "register", "registers_behind", "total", "tree"]


def register(m: Module, value: Value, name: str) -> Signal:
    """`value` one cycle later; a datapath register, without reset."""
    stage = Signal(Value.cast(value).shape(), name=name, reset_less=True)
    m.d.sync += stage.eq(value)
    return stage


def groups(values: Sequence, size: int) -> Iterator[Sequence]:
    """Successive slices of at most `size` values."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def added(one: Value, other: Value, carry: Value) -> Value:
    """The exact sum of two signed values and a bit, by one adder: the bit stands below both, whose sum it then carries into."""
    return (Cat(carry, one).as_signed() + Cat(carry, other).as_signed())[1:].as_signed()


def total(values: Sequence[Value]) -> Value:
    """The exact sum of `values` by a balanced tree of two-input adders."""
    values = list(values)
    while len(values) > 1:
        values = [pair[0] + pair[1] if len(pair) == 2 else pair[0] for pair in groups(values, 2)]
    return values[0]


def tree(m: Module, values: Sequence[Value], registers: int, name: str) -> Value:
    """`total` of `values`, `registers` cycles later: they stand behind the tree's levels, as evenly as there are such."""
    values = list(values)
    for level, count in enumerate(registers_behind(len(values), registers)):
        for at in range(count):
            values = [register(m, value, f"{name}_{level}_{at}_{i}") for i, value in enumerate(values)]
        values = [total(pair) for pair in groups(values, 2)]
    return values[0]


def registers_behind(values: int, registers: int) -> list[int]:
    """How many of `registers` stand in front of a tree of two inputs each, and behind each of its levels."""
    levels = ceil_log2(values)
    behind = [-(-(i + 1) * levels // (registers + 1)) for i in range(registers)]
    return [behind.count(level) for level in range(levels + 1)]
