"""Optional parts of a machine, and the instructions that need them."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from . import isa
from .accelerator import Accelerator
from .isa import Instruction, LoadTarget, Moments, Opcode, ParamMode, VectorOp

__all__ = ["Need", "missing", "needs", "refusal"]

Need = tuple[str, Opcode, str, int | None]
"""A parameter, and the field value that needs the part it stands for: opcode, field, value (None: any but 0)."""

_NEEDS: dict[str, tuple[tuple[Opcode, str, int | None], ...]] = {
    "norm_rows": (
        (Opcode.LOAD, "target", LoadTarget.NORM),
        (Opcode.LOAD, "target", LoadTarget.RSQRT),
        (Opcode.VECTOR, "op", VectorOp.LAYERNORM),
    ),
    "row_scales": (
        (Opcode.LOAD, "target", LoadTarget.EXP),
        (Opcode.LOAD, "target", LoadTarget.RECIP),
        (Opcode.MATRIX, "param_mode", ParamMode.TOKEN),
        (Opcode.VECTOR, "op", VectorOp.SOFTMAX),
    ),
    "index_rows": (
        (Opcode.LOAD, "target", LoadTarget.INDEX),
        (Opcode.LOAD, "gather", 1),
        (Opcode.MATRIX, "gather", 1),
        (Opcode.VECTOR, "op", VectorOp.COMPACT),
        (Opcode.VECTOR, "op", VectorOp.GATHER),
    ),
    "table_pages": (
        (Opcode.LOAD, "target", LoadTarget.TABLE),
        (Opcode.MATRIX, "table", 1),
        (Opcode.VECTOR, "table", 1),
    ),
    "operand_slots": (
        (Opcode.LOAD, "target", LoadTarget.REGISTER),
        *((Opcode[e.name], f"{slot}_field", None) for e in isa.Engine for slot in isa.SLOTS),
    ),
    "row_maxima": ((Opcode.MATRIX, "maxima", 1), (Opcode.VECTOR, "measured", 1)),
    "plain_steps": ((Opcode.MATRIX, "plain", 1),),
    "private": ((Opcode.MATRIX, "private", 1),),
    "lanes.fixed4_digits": ((Opcode.MATRIX, "digits", 1),),
    "row_moments": (
        (Opcode.MATRIX, "moments", Moments.WRITE),
        (Opcode.MATRIX, "moments", Moments.ADD),
        (Opcode.VECTOR, "summed", 1),
    ),
}
_WITHOUT = {"plain_steps": 1, "private": 1}
"""What a parameter is on a machine without the part, where that is not 0."""


def needs(accelerator: Accelerator) -> Iterator[Need]:
    """What `accelerator` cannot execute, because it is without the part: such an instruction is illegal."""
    for name, values in _NEEDS.items():
        if attrgetter(name)(accelerator) == _WITHOUT.get(name, 0):
            yield from ((name, *value) for value in values)


def missing(accelerator: Accelerator, opcode: Opcode, field: str) -> set[int]:
    """The values of a field that `accelerator` cannot execute."""
    return {value for _, of, name, value in needs(accelerator) if (of, name) == (opcode, field)} - {None}


def refusal(accelerator: Accelerator, instruction: Instruction) -> str | None:
    """Why `accelerator` cannot execute an instruction, for lack of an optional part; None where it can."""
    for name, opcode, field, value in needs(accelerator):
        given = getattr(instruction, field)
        if opcode == instruction.opcode and (given == value or (value is None and given)):
            return (
                f"{opcode.name}.{field} must not be {given} on a machine with {name}={_WITHOUT.get(name, 0)}"
            )
    return None
