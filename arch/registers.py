"""AXI4-Lite register map and error causes: one definition for hardware, drivers, C header and manual."""

from __future__ import annotations

import dataclasses
import enum

__all__ = [
    "IDENTITY",
    "REGISTERS",
    "Cause",
    "Control",
    "Register",
    "Status",
    "address",
    "c_header",
    "markdown",
]

IDENTITY = 0x5452_5A4F
"""ASCII "TRZO"."""


class Cause(enum.IntEnum):
    """Why a run stopped; in CAUSE, 0 while there is no error."""

    NONE = 0
    READ_ERROR = 1
    """A read response was not OKAY; CAUSE_INFO is the address of its burst."""
    WRITE_ERROR = 2
    """A write response was not OKAY; CAUSE_INFO is the address of its burst."""
    ILLEGAL_INSTRUCTION = 3
    """An unknown opcode or enumeration value, a semaphore of another consumer in `wait`, a transfer of no rows or items, a
    count register that leads beyond its field or to a count of 0, or no instruction at all (a program without END);
    CAUSE_INFO is the instruction's index."""
    OUT_OF_BOUNDS = 4
    """A load or store beyond its region's limit, or an unaligned offset; CAUSE_INFO is the offset."""
    BAD_PROGRAM = 5
    """Magic, version or size of the program header; CAUSE_INFO is the offending word."""
    WRONG_HASH = 6
    """The program was compiled for another accelerator; CAUSE_INFO is the program's hash, low word."""
    BAD_CHECKSUM = 7
    """CAUSE_INFO is the computed checksum."""
    NO_PROGRAM = 8
    """A start before a program was loaded, or an entry beyond its end; CAUSE_INFO is the entry."""
    QUEUE_FULL = 9
    """A start or load while the start queue was full; CAUSE_INFO is 0."""
    WATCHDOG = 10
    """No end of a run, or of the loading of a program, within WATCHDOG cycles; CAUSE_INFO is the number of
    instructions dispatched."""


class Control(enum.IntFlag):
    """Bits of CONTROL; writing 1 acts once, the register reads 0."""

    START = 1
    """Queue a run of ENTRY with the present INPUT and OUTPUT bases."""
    LOAD = 2
    """Read the program at PROGRAM into the instruction memory (only while idle; else QUEUE_FULL)."""
    CLEAR = 4
    """After an error: reset the engines, forget queued starts and the cause. The program stays unless its loading failed."""
    ACKNOWLEDGE = 8
    """Lower the interrupt."""


class Status(enum.IntFlag):
    """Bits of STATUS."""

    BUSY = 1
    ERROR = 2
    LOADED = 4
    """A program is in the instruction memory."""
    INTERRUPT = 8
    """A run has ended or failed since the last ACKNOWLEDGE."""
    QUEUED = 16
    """At least one start waits behind the running one."""


@dataclasses.dataclass(frozen=True)
class Register:
    """One 32-bit register."""

    name: str
    offset: int
    access: str
    """"r" or "rw"."""
    doc: str


REGISTERS: tuple[Register, ...] = (
    Register("IDENTITY", 0x00, "r", "0x54525A4F, ASCII TRZO"),
    Register("VERSION", 0x04, "r", "version of instruction set and registers"),
    Register("HASH_LOW", 0x08, "r", "low word of the accelerator hash"),
    Register("HASH_HIGH", 0x0C, "r", "high word of the accelerator hash"),
    Register("CONTROL", 0x10, "rw", "commands; see the bits of Control"),
    Register("STATUS", 0x14, "r", "see the bits of Status"),
    Register("CAUSE", 0x18, "r", "error cause; 0 without error"),
    Register("CAUSE_INFO", 0x1C, "r", "address, index or word that belongs to the cause"),
    Register("IRQ_ENABLE", 0x20, "rw", "bit 0: drive the irq port"),
    Register("WATCHDOG", 0x24, "rw", "longest run in cycles; 0 never times out"),
    Register("PROGRAM", 0x28, "rw", "address of the program header, a multiple of 128"),
    Register("ENTRY", 0x2C, "rw", "first instruction of the next start"),
    Register("WEIGHTS_BASE", 0x40, "rw", "region 0: address"),
    Register("WEIGHTS_LIMIT", 0x44, "rw", "region 0: size in bytes"),
    Register("INPUT_BASE", 0x48, "rw", "region 1: address, taken by START"),
    Register("INPUT_LIMIT", 0x4C, "rw", "region 1: size in bytes"),
    Register("OUTPUT_BASE", 0x50, "rw", "region 2: address, taken by START"),
    Register("OUTPUT_LIMIT", 0x54, "rw", "region 2: size in bytes"),
    Register("SCRATCH_BASE", 0x58, "rw", "region 3: address"),
    Register("SCRATCH_LIMIT", 0x5C, "rw", "region 3: size in bytes"),
    Register("RUNS", 0x60, "r", "runs ended without error since reset"),
    Register("CYCLES", 0x80, "r", "cycles of the last run, from its start to its end"),
    *(
        Register(
            f"{engine}_{what}", 0x84 + 8 * i + 4 * j, "r", f"cycles of the last run in which {engine} {doc}"
        )
        for i, engine in enumerate(("LOAD", "MATRIX", "VECTOR", "STORE"))
        for j, (what, doc) in enumerate(
            (("BUSY", "worked on an instruction"), ("STALLED", "was busy but held up"))
        )
    ),
)


def address(name: str) -> int:
    """Byte offset of a register."""
    return next(register.offset for register in REGISTERS if register.name == name)


def c_header() -> str:
    """The register map as a C header."""
    lines = [
        "/* Generated from arch/registers.py. */",
        "#ifndef TERRAZZO_REGISTERS_H",
        "#define TERRAZZO_REGISTERS_H",
        "",
    ]
    lines += [f"#define TERRAZZO_{r.name} 0x{r.offset:02X}u /* {r.access}: {r.doc} */" for r in REGISTERS]
    for kind in (Control, Status, Cause):
        lines.append("")
        lines += [f"#define TERRAZZO_{kind.__name__.upper()}_{bit.name} {int(bit)}u" for bit in kind]
    return "\n".join([*lines, "", "#endif", ""])


def markdown() -> str:
    """The register map as Markdown."""
    lines = [
        "# Registers",
        "",
        "Generated from `arch/registers.py`.",
        "",
        "| offset | name | access | meaning |",
    ]
    lines.append("|---|---|---|---|")
    lines += [f"| 0x{r.offset:02X} | {r.name} | {r.access} | {r.doc} |" for r in REGISTERS]
    for kind in (Control, Status, Cause):
        lines += ["", f"## {kind.__name__}", "", "| value | name |", "|---|---|"]
        lines += [f"| {int(bit)} | {bit.name} |" for bit in kind]
    return "\n".join([*lines, ""])
