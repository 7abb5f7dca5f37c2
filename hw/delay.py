"""Delay lines for pipelines of fixed length."""

from __future__ import annotations

from amaranth.hdl import Module, Signal

__all__ = ["delayed"]


def delayed(m: Module, value, cycles: int, *, reset_less: bool = True):
    """`value` as it was `cycles` clock cycles ago. Control bits take reset_less=False, so that a reset empties them."""
    for _ in range(cycles):
        register = Signal(value.shape(), reset_less=reset_less)
        m.d.sync += register.eq(value)
        value = register
    return value
