"""Encoding: every field round-trips, every range is checked, and the listing names what is set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.arch import isa


@st.composite
def instructions(draw):
    opcode = draw(st.sampled_from(list(isa.Opcode)))
    values = {}
    for field in isa.fields(opcode)[1:]:
        legal = st.sampled_from(list(field.kind)) if field.kind else st.integers(field.lo, field.hi)
        values[field.name] = int(draw(legal))
    return isa.Instruction(opcode, values)


@given(instructions())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_decode_inverts_encode(instruction):
    words = isa.encode(instruction)
    assert words.shape == (isa.INSTRUCTION_WORDS,) and words.dtype == np.uint32
    assert isa.decode(words) == instruction


@pytest.mark.parametrize("opcode", list(isa.Opcode))
def test_fields_fit_and_do_not_overlap(opcode):
    """Setting one field to its largest value changes exactly that field's bits."""
    position = 0
    for field in isa.fields(opcode):
        top = max(field.kind) if field.kind else field.hi
        if field.name != "opcode":
            with_field = isa.encode(isa.Instruction(opcode, {field.name: int(top)}))
            without = isa.encode(isa.Instruction(opcode))
            changed = int.from_bytes((with_field ^ without).tobytes(), "little")
            assert changed == (int(top) & ((1 << field.bits) - 1)) << position
        position += field.bits
    assert position <= isa.INSTRUCTION_BITS


@pytest.mark.parametrize(
    ("field", "value"), [("positions", 1 << 18), ("lo", -32769), ("lo", 32768), ("src", -1), ("mode", 9)]
)
def test_encoder_checks_ranges(field, value):
    with pytest.raises(isa.IsaError, match=rf"^MATRIX\.{field} must be .*, not {value} "):
        isa.encode(isa.Instruction(isa.Opcode.MATRIX, {field: value}))


def test_encoder_refuses_unknown_fields():
    with pytest.raises(isa.IsaError, match=r"^LOAD has no field \['positions'\]$"):
        isa.encode(isa.Instruction(isa.Opcode.LOAD, {"positions": 1}))


@pytest.mark.parametrize("number", [0, 6, 15])
def test_decoder_refuses_illegal_opcodes(number):
    with pytest.raises(isa.IsaError, match=rf"^opcode must be one of .*, not {number}$"):
        isa.decode(np.array([number] + [0] * 31, dtype=np.uint32))


def test_decoder_refuses_illegal_enumerations():
    words = isa.encode(isa.Instruction(isa.Opcode.MATRIX, {"mode": 2}))
    words[2] |= 1 << (88 - 64)  # mode 3
    with pytest.raises(isa.IsaError, match=r"^MATRIX\.mode must be one of .*, not 3$"):
        isa.decode(words)


def test_listing_names_semaphores_and_enumerations():
    pair = isa.semaphore(isa.Engine.LOAD, isa.Engine.MATRIX)
    text = isa.disassemble(isa.Instruction(isa.Opcode.MATRIX, {"wait": 1 << pair, "mode": 1, "positions": 7}))
    assert text.startswith("MATRIX wait=LOAD>MATRIX mode=CONV positions=7")


def test_manual_lists_every_field():
    text = isa.manual()
    for opcode in isa.Opcode:
        for field in isa.fields(opcode):
            assert f"| {field.name} |" in text
