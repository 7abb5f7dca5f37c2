"""Instruction layouts as Amaranth types, made from `arch.isa`."""

from __future__ import annotations

from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from ..arch import isa

__all__ = ["STORED_BITS", "instruction_layout"]

STORED_BITS = max(isa.used_bits(opcode) for opcode in isa.Opcode)
"""Of an instruction in the instruction memory: the rest means nothing."""


def instruction_layout(opcode: isa.Opcode) -> data.StructLayout:
    """The layout of the used bits of one opcode's instructions."""
    return data.StructLayout(
        {field.name: (signed if field.signed else unsigned)(field.bits) for field in isa.fields(opcode)}
    )
