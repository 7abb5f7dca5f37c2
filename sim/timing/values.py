"""What count registers and index memory hold when each instruction runs, as far as timing depends on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...arch import isa
from ...arch.accelerator import TABLE_ROW_BYTES
from ...arch.isa import LoadTarget, Opcode, Region, VectorOp
from ...arch.program import Program
from .table import COLUMN, program_table

__all__ = ["resolved"]

_ENTRIES = TABLE_ROW_BYTES * 8 // isa.INDEX_BITS
"""Of the index memory, in a row of LOAD."""


def resolved(
    program: Program, entry: int, written: Sequence[Mapping[int, np.ndarray]] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """The program's table with all operand slots added for a run from `entry` after the setup, and the entries of all
    its gathering LOADs one after the other; `index` of such a LOAD is the place of its first one there.

    `written`, by run from `entry` and instruction, the run in question last: what LOAD INDEX or REGISTER wrote, where that
    is not in the region WEIGHTS, and the positions that COMPACT kept. ValueError where a value is needed that neither of
    them tells.
    """
    values = _Values(program)
    if entry != program.setup_entry:
        values.run(program.setup_entry)
    for values.written in written[:-1]:
        values.run(entry)
    values.written = written[-1] if written else {}
    return values.run(entry)


class _Values:
    """Registers and index memory on the way through a program; None is a value that is not known."""

    def __init__(self, program: Program):
        self.program = program
        self.written: Mapping[int, np.ndarray] = {}
        self.registers: list[int | None] = [0] * isa.REGISTERS
        self.index: list[int | None] = [0] * program.accelerator.index_rows

    def run(self, entry: int) -> tuple[np.ndarray, np.ndarray]:
        """Follows a run; its table and the entries of its gathers."""
        table, items = program_table(self.program.instructions), []
        for number in range(entry, len(table)):
            row = table[number]
            opcode = Opcode(int(row[COLUMN["opcode"]]))
            if opcode == Opcode.END:
                break
            self._add(number, opcode, row)
            if opcode == Opcode.LOAD:
                self._load(number, row, items)
            elif opcode == Opcode.VECTOR and row[COLUMN["op"]] == VectorOp.COMPACT:
                self._compact(number, row)
        return table, np.array(items, dtype=np.int64)

    def _add(self, number: int, opcode: Opcode, row: np.ndarray) -> None:
        for slot in isa.SLOTS:
            place, register, shift = (
                int(row[COLUMN[f"{slot}_{part}"]]) for part in ("field", "register", "shift")
            )
            if place:
                value = self._known(number, f"count register {register}", self.registers[register])
                row[COLUMN[isa.operands(opcode)[place - 1].name]] += -(-value // (1 << shift))

    def _known(self, number: int, what: str, value: int | None) -> int:
        if value is None:
            raise ValueError(
                f"instruction {number} needs {what}, which the program's weights must tell, or `written`."
            )
        return value

    def _load(self, number: int, row: np.ndarray, items: list[int]) -> None:
        a = self.program.accelerator
        rows, item_rows, starts = int(row[COLUMN["rows"]]), int(row[COLUMN["item_rows"]]), [0]
        if row[COLUMN["gather"]]:
            first, count = int(row[COLUMN["index"]]), -(-rows // item_rows)
            starts = [
                self._known(number, f"entry {i} of the index memory", self.index[i])
                for i in range(first, first + count)
            ]
            row[COLUMN["index"]] = len(items)
            items += starts
        else:
            item_rows = rows
        target, to = LoadTarget(int(row[COLUMN["target"]])), int(row[COLUMN["row"]])
        if target not in (LoadTarget.REGISTER, LoadTarget.INDEX):
            return
        size = 1 if target == LoadTarget.REGISTER else _ENTRIES
        memory = self.registers if target == LoadTarget.REGISTER else self.index
        found: list[int | None] = [None] * (rows * size)
        if number in self.written:
            found = [int(value) for value in self.written[number]]
        elif row[COLUMN["region"]] == Region.WEIGHTS:
            numbers = [start * item_rows + i for start in starts for i in range(item_rows)][:rows]
            pitch, found = a.pitch(TABLE_ROW_BYTES), []
            for at in (int(row[COLUMN["offset"]]) + i * pitch for i in numbers):
                raw = int.from_bytes(self.program.weights[at : at + TABLE_ROW_BYTES].tobytes(), "little")
                bits = isa.REGISTER_BITS if target == LoadTarget.REGISTER else isa.INDEX_BITS
                found += [raw >> i * bits & (1 << bits) - 1 for i in range(size)]
        memory[to * size : (to + rows) * size] = found

    def _compact(self, number: int, row: np.ndarray) -> None:
        first, register = int(row[COLUMN["index"]]), int(row[COLUMN["count_register"]])
        kept = self.written.get(number)
        count = int(row[COLUMN["positions"]]) if kept is None else len(kept)
        self.registers[register] = None if kept is None else count
        self.index[first : first + count] = [None] * count if kept is None else [int(p) for p in kept]
