"""The instruction set: opcodes, fields, encoding. Everything else that knows an instruction derives from here.

An instruction is 1024 bits, thirty-two little-endian 32-bit words. Fields are packed from bit 0 in the order of
their declaration, the common ones first. docs/machine.md says what each engine does with them.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np

from .errors import UserError

__all__ = [
    "INDEX_BITS",
    "INSTRUCTION_BITS",
    "INSTRUCTION_WORDS",
    "REGISTERS",
    "REGISTER_BITS",
    "SEMAPHORES",
    "SLOTS",
    "TAG_BITS",
    "Destination",
    "Engine",
    "FetchMode",
    "Field",
    "Instruction",
    "IsaError",
    "LoadTarget",
    "Moments",
    "Opcode",
    "ParamMode",
    "Region",
    "VectorOp",
    "decode",
    "disassemble",
    "encode",
    "fields",
    "manual",
    "operands",
    "semaphore",
    "slot",
    "used_bits",
]

INSTRUCTION_WORDS = 32
INSTRUCTION_BITS = 1024
SEMAPHORES = 16
TAG_BITS = 10
"""Of a layer number."""
REGISTERS = 16
"""Count registers, which operand slots read."""
REGISTER_BITS = 18
"""Of a count register, unsigned."""
INDEX_BITS = 16
"""Of an entry of the index memory, unsigned."""
SLOTS = ("a", "b", "c")
"""Operand slots of every instruction."""


class IsaError(UserError):
    """A field out of range, or words that are no instruction."""


class Engine(enum.IntEnum):
    """The engines that own a queue; the number is the engine's index in semaphores, counters and traces."""

    LOAD = 0
    MATRIX = 1
    VECTOR = 2
    STORE = 3


class Opcode(enum.IntEnum):
    """What an instruction is. Every other value, 0 included, is illegal."""

    END = 1
    LOAD = 2
    MATRIX = 3
    VECTOR = 4
    STORE = 5


class Region(enum.IntEnum):
    """Address space in DRAM: a base register and a limit register each."""

    WEIGHTS = 0
    INPUT = 1
    OUTPUT = 2
    SCRATCH = 3


class LoadTarget(enum.IntEnum):
    """The memory that a LOAD fills."""

    SCRATCHPAD = 0
    WEIGHT = 1
    PARAM = 2
    NORM = 3
    TABLE = 4
    EXP = 5
    RECIP = 6
    RSQRT = 7
    REGISTER = 8
    """Count registers, one a row: its low bits."""
    INDEX = 9
    """Index memory, four entries a row."""


class FetchMode(enum.IntEnum):
    """How a MATRIX instruction reads its operand."""

    LINEAR = 0
    """All columns of a row at once."""
    CONV = 1
    """The pixel under a tap of each column's window, one chunk of channels."""
    JOIN = 2
    """One column at a time: `depth` adjacent bytes of an image row, any alignment."""


class ParamMode(enum.IntEnum):
    """Where a MATRIX drain takes m, n and C from."""

    CHANNEL = 0
    """A parameter row for each step of each block."""
    TENSOR = 1
    """One parameter row for everything."""
    TOKEN = 2
    """The row-scale memory, one row for each tile of positions; C = 1 << (n - 1)."""


class Destination(enum.IntEnum):
    """Where a MATRIX drain writes."""

    SCRATCHPAD = 0
    KEYS = 1
    """Weight memory of the first lanes: a lane per token, words of channels."""
    VALUES = 2
    """Weight memory of the first lanes: a lane per channel, words of tokens."""


class Moments(enum.IntEnum):
    """What a MATRIX drain does with the sums of its outputs and of their squares."""

    NONE = 0
    WRITE = 1
    """They become the row moments."""
    ADD = 2
    """They are added to the row moments, which those of other channels are in."""


class VectorOp(enum.IntEnum):
    """What a VECTOR instruction computes."""

    ELEMENTWISE = 0
    LAYERNORM = 1
    SOFTMAX = 2
    MULTIPLY = 3
    """The product of two tensors."""
    COMPACT = 4
    """Numbers of the positions whose score is high enough, and their count."""
    GATHER = 5
    """Positions in the order of the index memory."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of an instruction."""

    name: str
    bits: int
    doc: str
    signed: bool = False
    kind: type[enum.IntEnum] | None = None
    least: int = 0
    """Smallest value with which the instruction may run."""

    @property
    def lo(self) -> int:
        """Smallest legal value."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def hi(self) -> int:
        """Largest legal value."""
        return (1 << (self.bits - self.signed)) - 1


_COMMON = (
    Field("opcode", 4, "what the instruction is", kind=Opcode),
    Field("tag", TAG_BITS, "layer number, for traces and error reports"),
    Field(
        "wait", 16, "semaphores (bit mask) that must be positive before the start; each is decremented once"
    ),
    Field("signal", 16, "semaphores (bit mask) that are incremented when the last write has been made"),
    *(
        field
        for slot in SLOTS
        for field in (
            Field(
                f"{slot}_field",
                6,
                f"operand slot {slot}: the field (1 + its place in `operands`) to add to; 0 none",
            ),
            Field(f"{slot}_register", 4, f"operand slot {slot}: count register"),
            Field(f"{slot}_shift", 4, f"operand slot {slot}: adds ceil(register / 2**shift)"),
        )
    ),
)
_DRAM = (
    Field("region", 2, "base and limit register pair", kind=Region),
    Field("offset", 32, "bytes from the base; a multiple of a line (ports * bus_bytes)"),
    Field("row", 16, "first row of the on-chip memory"),
    Field("rows", 16, "number of rows, at least 1; each takes a whole number of lines", least=1),
)
_FIELDS: dict[Opcode, tuple[Field, ...]] = {
    Opcode.END: (),
    Opcode.LOAD: (
        Field("target", 4, "memory to fill", kind=LoadTarget),
        *_DRAM,
        Field("gather", 1, "take items of `item_rows` rows in the order of the index memory"),
        Field("index", 16, "first entry of the index memory (gather)"),
        Field("item_rows", 16, "rows of an item, at least 1 (gather)"),
    ),
    Opcode.STORE: _DRAM,
    Opcode.MATRIX: (
        Field("mode", 2, "operand fetch", kind=FetchMode),
        Field("unsigned", 1, "operand bytes are unsigned (softmax numerators)"),
        Field("maximum", 1, "accumulate by maximum instead of sum"),
        Field(
            "private", 1, "depthwise: lanes l // depth have chunks of their own, and a product each (CONV)"
        ),
        Field("positions", 18, "output positions, at least 1", least=1),
        Field("src", 16, "scratchpad row of the operand"),
        Field("src_stride", 12, "scratchpad rows per tile of `columns` positions of the operand"),
        Field("groups", 11, "groups of input chunks, each with its own blocks, at least 1", least=1),
        Field("blocks", 11, "blocks of output channels per group, at least 1", least=1),
        Field("chunks", 12, "chunks summed per block, at least 1: taps_y * taps_x * tap_chunks", least=1),
        Field("taps_y", 8, "window rows (CONV, JOIN)"),
        Field("taps_x", 4, "window columns (CONV)"),
        Field(
            "tap_chunks",
            10,
            "chunks per tap (CONV) or per window row (JOIN), of one group; with private at once",
        ),
        Field("stride_y", 6, "window step in rows (CONV, JOIN)"),
        Field("stride_x", 12, "window step in columns (CONV) or bytes (JOIN)"),
        Field("start_y", 12, "first window's begin in rows, negative in padding (CONV, JOIN)", signed=True),
        Field("start_x", 12, "first window's begin in columns (CONV) or bytes (JOIN)", signed=True),
        Field("height", 10, "input rows (CONV, JOIN)"),
        Field("width", 12, "input columns (CONV) or bytes of an image row (JOIN); beyond is padding"),
        Field("out_width", 10, "output columns (CONV, JOIN)"),
        Field("advance_y", 10, "columns // out_width: output rows from tile to tile (CONV, JOIN)"),
        Field("advance_x", 10, "columns % out_width: output columns from tile to tile besides (CONV, JOIN)"),
        Field("prefix", 4, "leading output positions that see only padding (CONV, JOIN)"),
        Field("pad_value", 8, "operand byte for padding", signed=True),
        Field("weight", 16, "first row of the weight memory"),
        Field("weight_stride", 12, "weight rows from block to block"),
        Field("gather", 1, "take every chunk's weight row from the index memory"),
        Field("index", 16, "first entry of the index memory (gather)"),
        Field("steps", 8, "drain steps per block, at least 1: block channels / drain", least=1),
        Field("param_mode", 2, "source of m, n, C", kind=ParamMode),
        Field("param", 16, "first row of the parameter or row-scale memory"),
        Field(
            "permute", 1, "take each output's lane group from its parameter record instead of the step number"
        ),
        Field("lo", 16, "lower clamp", signed=True),
        Field("hi", 16, "upper clamp", signed=True),
        Field("table", 1, "apply a unary table before the clamp"),
        Field("table_wide", 1, "the table has 1024 entries instead of 256"),
        Field("table_page", 2, "which unary table"),
        Field("residual", 1, "add a residual (s16)"),
        Field("residual_row", 16, "scratchpad row of the residual"),
        Field("residual_stride", 12, "scratchpad rows per tile of the residual"),
        Field("residual_m", 16, "multiplier of the residual"),
        Field("residual_n", 6, "shift of the residual, at least 1"),
        Field("destination", 2, "where outputs go", kind=Destination),
        Field("wide", 1, "outputs are 16 bits"),
        Field("dst", 16, "first row of the destination"),
        Field(
            "dst_stride", 12, "rows per tile (SCRATCHPAD), per block of tokens (KEYS) or of channels (VALUES)"
        ),
        Field("dst_channel", 12, "first output channel in the destination (SCRATCHPAD), a multiple of drain"),
        Field("dst_block", 8, "lanes of a block: tiles of tokens (KEYS), drain steps of channels (VALUES)"),
        Field("dst_part", 8, "place in a block of the first tile (KEYS) or step (VALUES); below dst_block"),
        Field("second", 1, "write a second, 8-bit output to the scratchpad"),
        Field(
            "second_dst",
            16,
            "first row of the second output (second), row maxima (maxima) or row moments (moments)",
        ),
        Field("second_stride", 12, "rows per tile of the second output (second), or valid channels (maxima)"),
        Field("second_m", 16, "multiplier of the second output"),
        Field("second_n", 6, "shift of the second output, at least 1"),
        Field("second_constant", 40, "C of the second output", signed=True),
        Field("second_lo", 8, "lower clamp of the second output", signed=True),
        Field("second_hi", 8, "upper clamp of the second output", signed=True),
        Field(
            "plain",
            1,
            "steps of 2 * drain channels without table, residual, second, permute; TENSOR or TOKEN, SCRATCHPAD",
        ),
        Field("skip", 8, "drain steps that the last block of a tile does without; below steps"),
        Field("digits", 1, "Fixed-4 lanes take operands as digits of base 16: each block's chunks twice"),
        Field("maxima", 1, "keep the largest output of every position (logits) for SOFTMAX"),
        Field(
            "moments", 2, "sums of the outputs of every position and of squares for LAYERNORM", kind=Moments
        ),
    ),
    Opcode.VECTOR: (
        Field("op", 3, "what to compute", kind=VectorOp),
        Field("positions", 18, "positions, at least 1", least=1),
        Field("channels", 12, "valid channels of each position (keys of a softmax), at least 1", least=1),
        Field("src", 16, "scratchpad row of the input"),
        Field("src_stride", 12, "scratchpad rows per tile of the input"),
        Field("src_wide", 1, "input codes are 16 bits (always for LAYERNORM and SOFTMAX)"),
        Field("dst", 16, "scratchpad row of the output"),
        Field("dst_stride", 12, "scratchpad rows per tile of the output"),
        Field("dst_wide", 1, "output codes are 16 bits (ELEMENTWISE only)"),
        Field("m", 16, "multiplier (ELEMENTWISE), m2 (SOFTMAX)"),
        Field("n", 6, "shift (ELEMENTWISE, LAYERNORM), n2 (SOFTMAX)"),
        Field("constant", 48, "C (ELEMENTWISE), eps_I (LAYERNORM)", signed=True),
        Field("lo", 16, "lower clamp (ELEMENTWISE, LAYERNORM)", signed=True),
        Field("hi", 16, "upper clamp (ELEMENTWISE, LAYERNORM)", signed=True),
        Field("table", 1, "apply a unary table before the clamp (ELEMENTWISE)"),
        Field("table_wide", 1, "the table has 1024 entries instead of 256"),
        Field("table_page", 2, "which unary table"),
        Field("residual", 1, "add a residual (s16, ELEMENTWISE)"),
        Field("residual_wide", 1, "codes of the second factor are 16 bits (MULTIPLY)"),
        Field("broadcast", 1, "the second factor is one position, for all (MULTIPLY)"),
        Field("bias", 1, "add the residual tensor (s16) to the logits (SOFTMAX)"),
        Field("residual_row", 16, "scratchpad row of the residual"),
        Field("residual_stride", 12, "scratchpad rows per tile of the residual"),
        Field("residual_m", 16, "multiplier of the residual"),
        Field("residual_n", 6, "shift of the residual, at least 1"),
        Field("param", 16, "first row of LayerNorm parameters (LAYERNORM) or of row scales (SOFTMAX)"),
        Field(
            "index",
            16,
            "first entry of the index memory (COMPACT, GATHER), row of the maxima (SOFTMAX) or moments (LAYERNORM)",
        ),
        Field("count_register", 4, "count register that takes the number of kept positions (COMPACT)"),
        Field("measured", 1, "one pass, with the row maxima of the drain (SOFTMAX without bias)"),
        Field("summed", 1, "one pass, with the row moments of the drain (LAYERNORM)"),
    ),
}


def fields(opcode: Opcode) -> tuple[Field, ...]:
    """All fields of an opcode from bit 0 upwards."""
    return _COMMON + _FIELDS[opcode]


def operands(opcode: Opcode) -> tuple[Field, ...]:
    """The fields of an opcode to which an operand slot can add: its own unsigned numbers."""
    return tuple(f for f in _FIELDS[opcode] if f.kind is None and not f.signed and f.bits > 1)


def slot(opcode: Opcode, name: str) -> int:
    """What an operand slot's `_field` says to name the field `name`."""
    return 1 + [field.name for field in operands(opcode)].index(name)


def used_bits(opcode: Opcode) -> int:
    """Bits of an instruction that mean anything; the others are 0."""
    return sum(field.bits for field in fields(opcode))


def semaphore(producer: Engine, consumer: Engine) -> int:
    """The semaphore on which `producer` tells `consumer` of progress: one for every ordered pair of engines."""
    return int(producer) * 4 + int(consumer)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An opcode and its field values; fields that are not given are 0."""

    opcode: Opcode
    values: dict[str, int] = dataclasses.field(default_factory=dict)

    def __getattr__(self, name: str) -> int:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.values.get(name, 0)

    @property
    def engine(self) -> Engine | None:
        """The engine that executes it; None for END."""
        return None if self.opcode == Opcode.END else Engine[self.opcode.name]


def encode(instruction: Instruction) -> np.ndarray:
    """`INSTRUCTION_WORDS` uint32 words. Raises IsaError for an unknown field or a value out of range."""
    declared = fields(instruction.opcode)
    unknown = set(instruction.values) - {field.name for field in declared}
    if unknown:
        raise IsaError(f"{instruction.opcode.name} has no field {sorted(unknown)}")
    word, position = 0, 0
    for field in declared:
        value = int(instruction.opcode) if field.name == "opcode" else int(getattr(instruction, field.name))
        if not field.lo <= value <= field.hi:
            raise IsaError(
                f"{instruction.opcode.name}.{field.name} must be {field.lo}..{field.hi}, not {value} ({field.doc})"
            )
        word |= (value & ((1 << field.bits) - 1)) << position
        position += field.bits
    assert position <= INSTRUCTION_BITS
    return np.frombuffer(word.to_bytes(INSTRUCTION_BITS // 8, "little"), dtype="<u4").copy()


def decode(words: np.ndarray) -> Instruction:
    """The inverse of `encode`; every field is present. Raises IsaError for an illegal opcode or field."""
    word = int.from_bytes(np.asarray(words, dtype="<u4").tobytes(), "little")
    number = word & 15
    if number not in set(Opcode):
        raise IsaError(f"opcode must be one of {[int(o) for o in Opcode]}, not {number}")
    opcode, values, position = Opcode(number), {}, 0
    for field in fields(opcode):
        value = word >> position & ((1 << field.bits) - 1)
        if field.signed and value >> (field.bits - 1):
            value -= 1 << field.bits
        if field.kind is not None and value not in set(field.kind):
            raise IsaError(f"{opcode.name}.{field.name} must be one of {list(field.kind)}, not {value}")
        if field.name != "opcode":
            values[field.name] = value
        position += field.bits
    return Instruction(opcode, values)


def disassemble(instruction: Instruction) -> str:
    """One line: the opcode and every field that is not zero, enumerations by name (but NONE)."""
    parts = []
    for field in fields(instruction.opcode)[1:]:
        value = getattr(instruction, field.name)
        if field.name in ("wait", "signal"):
            pairs = [
                f"{Engine(s // 4).name}>{Engine(s % 4).name}" for s in range(SEMAPHORES) if value >> s & 1
            ]
            if pairs:
                parts.append(f"{field.name}={','.join(pairs)}")
        elif field.kind is not None:
            name = field.kind(value).name
            parts += [] if name == "NONE" else [f"{field.name}={name}"]
        elif value:
            parts.append(f"{field.name}={value}")
    return " ".join([instruction.opcode.name, *parts])


def manual() -> str:
    """The instruction manual in Markdown: a table per opcode."""
    lines = [
        "# Instructions",
        "",
        "Generated from `arch/isa.py`. An instruction is 1024 bits; bit 0 comes first.",
        "",
    ]
    for opcode in Opcode:
        lines += [
            f"## {opcode.name} ({int(opcode)})",
            "",
            "| bits | field | range | meaning |",
            "|---|---|---|---|",
        ]
        position = 0
        for field in fields(opcode):
            names = (
                ", ".join(f"{int(k)} {k.name}" for k in field.kind)
                if field.kind
                else f"{field.lo}..{field.hi}"
            )
            lines.append(
                f"| {position}..{position + field.bits - 1} | {field.name} | {names} | {field.doc} |"
            )
            position += field.bits
        lines.append("")
    return "\n".join(lines)
