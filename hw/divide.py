"""Division by a constant: a shift for a power of two, else a multiplication by the reciprocal."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed

__all__ = ["divided", "folded"]


def folded(value: Value) -> Value:
    """A signed number as `divided` takes it: its bits, inverted where it is negative, and above them its sign."""
    sign = value[-1]
    return Cat(Mux(sign, ~value, value)[: len(value) - 1], sign)


def divided(
    m: Module, value: Value, divisor: int, name: str, *, sign: bool = False, moves: Value | int = 1
) -> tuple[Signal, Signal]:
    """(value // divisor, value % divisor) in the cycle after; `value` is unsigned, or with `sign` a `folded` number.

    The register moves on in cycles with `moves`. In front of it is a multiplier, unless the divisor is a power of two.
    """
    bits = len(value) - sign
    held = Signal(bits, name=f"{name}_held", reset_less=True)
    negative = Signal(name=f"{name}_negative", reset_less=True) if sign else Const(0, 1)
    with m.If(moves):
        m.d.sync += held.eq(value[:bits])
        if sign:
            m.d.sync += negative.eq(value[-1])
    if divisor & (divisor - 1) == 0:
        plain = held >> (divisor.bit_length() - 1)
    else:
        # x // d = x * r >> s for 0 <= x < 2**bits where 2**s <= r * d <= 2**s + 2**(s - bits).
        shift = bits + divisor.bit_length()
        reciprocal = (1 << shift) // divisor + 1
        assert reciprocal * divisor - (1 << shift) <= 1 << (shift - bits)
        plain = Signal(bits, name=f"{name}_plain", reset_less=True)
        with m.If(moves):
            m.d.sync += plain.eq((value[:bits] * reciprocal) >> shift)
    quotient = Signal(signed(bits + 1) if sign else bits, name=f"{name}_quotient")
    remainder = Signal(range(divisor), name=f"{name}_remainder")
    number = Mux(negative, ~held, held)
    m.d.comb += [
        quotient.eq(Mux(negative, Cat(~plain[:bits], 1).as_signed(), plain) if sign else plain),
        remainder.eq(number - quotient * divisor),
    ]
    return quotient, remainder
