"""Division by a constant: a shift for a power of two, else a multiplication by the reciprocal."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value, signed

__all__ = ["divided"]


def divided(m: Module, value: Value, divisor: int, name: str) -> tuple[Signal, Signal]:
    """(value // divisor, value % divisor) of a number of either sign, without registers.

    Where the divisor is no power of two the path is a multiplier long.
    """
    shape = Value.cast(value).shape()
    bits = shape.width
    quotient = Signal(signed(bits) if shape.signed else bits, name=f"{name}_quotient")
    remainder = Signal(range(divisor), name=f"{name}_remainder")
    if divisor & (divisor - 1) == 0:
        m.d.comb += [quotient.eq(value >> (divisor.bit_length() - 1)), remainder.eq(value)]
        return quotient, remainder
    # x // d = x * r >> s for 0 <= x < 2**bits where 2**s <= r * d <= 2**s + 2**(s - bits).
    shift = bits + divisor.bit_length()
    reciprocal = (1 << shift) // divisor + 1
    assert reciprocal * divisor - (1 << shift) <= 1 << (shift - bits)
    plain = Signal(bits, name=f"{name}_plain")
    flipped = Mux(value < 0, ~value, value) if shape.signed else value
    m.d.comb += [
        plain.eq((flipped[:bits] * reciprocal) >> shift),
        quotient.eq(Mux(value < 0, ~plain, plain) if shape.signed else plain),
        remainder.eq(value - quotient * divisor),
    ]
    return quotient, remainder
