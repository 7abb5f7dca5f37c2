"""Instruction layouts as Amaranth types, made from `arch.isa`."""

from __future__ import annotations

from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from ..arch import isa

__all__ = ["instruction_layout"]


def instruction_layout(opcode: isa.Opcode) -> data.StructLayout:
    """The 512-bit layout of one opcode's instructions; unused bits are the member `_unused`."""
    members = {field.name: (signed if field.signed else unsigned)(field.bits) for field in isa.fields(opcode)}
    used = sum(field.bits for field in isa.fields(opcode))
    return data.StructLayout({**members, "_unused": unsigned(isa.INSTRUCTION_BITS - used)})
