"""The program as an integer table, for code that numba compiles."""

from __future__ import annotations

import numpy as np

from ...arch import isa

__all__ = ["COLUMN", "program_table"]

COLUMN: dict[str, int] = {}
"""Field name to table column; fields of several opcodes share a column."""
for _opcode in isa.Opcode:
    for _field in isa.fields(_opcode):
        COLUMN.setdefault(_field.name, len(COLUMN))


def program_table(instructions: np.ndarray) -> np.ndarray:
    """Instruction words (N, 16) to an int64 table (N, len(COLUMN))."""
    table = np.zeros((len(instructions), len(COLUMN)), dtype=np.int64)
    for row, words in zip(table, instructions, strict=True):
        instruction = isa.decode(words)
        row[COLUMN["opcode"]] = instruction.opcode
        for name, value in instruction.values.items():
            row[COLUMN[name]] = value
    return table
