"""Instruction layouts as Amaranth types, made from `arch.isa`."""

from __future__ import annotations

from amaranth.hdl import Cat, Value, signed, unsigned
from amaranth.lib import data

from ..arch import isa
from ..arch.accelerator import Accelerator

__all__ = ["USED_BITS", "instruction_layout", "stored", "stored_bits", "stored_layout"]

USED_BITS = max(isa.used_bits(opcode) for opcode in isa.Opcode)
"""Of an instruction in DRAM: the rest means nothing."""
_SLOT_FIELDS = tuple(f"{slot}_{part}" for slot in isa.SLOTS for part in ("field", "register", "shift"))


def instruction_layout(opcode: isa.Opcode) -> data.StructLayout:
    """The layout of the used bits of one opcode's instructions."""
    return data.StructLayout(
        {field.name: (signed if field.signed else unsigned)(field.bits) for field in isa.fields(opcode)}
    )


def stored_layout(opcode: isa.Opcode, accelerator: Accelerator) -> data.StructLayout:
    """What the machine keeps of one opcode's instructions: `instruction_layout`, or without operand slots one bit `slots`
    in the place of theirs, which tells that one of them names a field."""
    full = instruction_layout(opcode)
    if accelerator.operand_slots:
        return full
    members = {name: field.shape for name, field in full}
    first, *others = _SLOT_FIELDS
    members = {
        ("slots" if name == first else name): shape for name, shape in members.items() if name not in others
    }
    return data.StructLayout(members | {"slots": 1})


def stored_bits(accelerator: Accelerator) -> int:
    """Bits of an instruction in the instruction memory."""
    return max(stored_layout(opcode, accelerator).size for opcode in isa.Opcode)


def stored(accelerator: Accelerator, word: Value) -> Value:
    """What the machine keeps of an instruction's used bits."""
    if accelerator.operand_slots:
        return word
    common = instruction_layout(isa.Opcode.END)
    first, last = common[_SLOT_FIELDS[0]], common[_SLOT_FIELDS[-1]]
    view = data.View(common, word[: common.size])
    named = Cat(view[f"{slot}_field"] for slot in isa.SLOTS).any()
    return Cat(word[: first.offset], named, word[last.offset + last.width :])
