"""A loop counter whose end is a register."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value

__all__ = ["loop"]


def loop(
    m: Module, step, start, count: Value, first: Value | None = None, ahead=1, first_ahead=1
) -> tuple[Signal, Signal, Signal]:
    """How many of `count` are left, this one included, and a register that is high for the last `ahead` ones: then a step
    begins anew; and what that register is in the next cycle. `start` begins with `first` and `first_ahead`, which are `count` and `ahead` from the next cycle on (`first` is
    `count` unless it is given)."""
    first = count if first is None else first
    left, last, following = Signal(len(count)), Signal(), Signal()
    m.d.comb += following.eq(last)
    with m.If(step):
        m.d.sync += left.eq(Mux(last, count, left - ahead))
        m.d.comb += following.eq(Mux(last, count <= ahead, left <= ahead << 1))
    with m.If(start):
        m.d.sync += left.eq(first)
        m.d.comb += following.eq(first <= first_ahead)
    m.d.sync += last.eq(following)
    return left, last, following
