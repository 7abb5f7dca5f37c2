"""The program file: instructions, memory image, and what a driver must know to run them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from .accelerator import VERSION as ISA_VERSION
from .accelerator import Accelerator, AcceleratorError
from .files import FileError, read_bundle, write_bundle
from .isa import INSTRUCTION_WORDS
from .layout import Layout

__all__ = ["Layer", "Program", "checksum", "image"]

MAGIC = 0x5A52_5450
"""First word of a program header in DRAM."""
VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """What the instructions of one tag compute."""

    tag: int
    name: str
    """Name of the graph's operator."""
    op: str
    macs: int
    """Useful multiply-accumulates per image."""
    depthwise: bool = False
    """Reported apart in utilization."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Header:
    __pydantic_config__ = ConfigDict(extra="forbid")
    version: int
    isa_version: int
    name: str
    accelerator: dict
    hash: str
    setup_entry: int
    frame_entry: int
    scratch_bytes: int
    input: Layout
    output: Layout
    layers: tuple[Layer, ...]
    checksum: int


_HEADER = TypeAdapter(_Header)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """Instructions for one accelerator.

    A driver loads the program, runs `setup_entry` once (it fills tables and resident weights), then `frame_entry`
    once per image. Each entry runs to its END.
    """

    name: str
    accelerator: Accelerator
    setup_entry: int
    frame_entry: int
    scratch_bytes: int
    """Size that the SCRATCH region needs."""
    input: Layout
    """Of the INPUT buffer, written by the driver."""
    output: Layout
    """Of the OUTPUT buffer, read by the driver."""
    layers: tuple[Layer, ...]
    instructions: np.ndarray
    """(N, 32) uint32."""
    weights: np.ndarray
    """The WEIGHTS region, uint8."""

    def layer(self, tag: int) -> Layer:
        """The layer of an instruction's tag."""
        return next(layer for layer in self.layers if layer.tag == tag)

    def save(self, path: str | Path) -> Path:
        """Write the program file."""
        header = _Header(
            version=VERSION,
            isa_version=ISA_VERSION,
            name=self.name,
            accelerator=self.accelerator.to_dict(),
            hash=f"{self.accelerator.hash:016x}",
            setup_entry=self.setup_entry,
            frame_entry=self.frame_entry,
            scratch_bytes=self.scratch_bytes,
            input=self.input,
            output=self.output,
            layers=self.layers,
            checksum=checksum(self.instructions)
            ^ checksum(np.pad(self.weights, (0, -len(self.weights) % 4)).view("<u4")),
        )
        arrays = {"instructions": self.instructions, "weights": self.weights}
        return write_bundle(path, "program", _HEADER.dump_python(header, mode="json"), arrays)

    @classmethod
    def load(cls, path: str | Path) -> Program:
        """Read and check a program file. Raises FileError."""
        raw, arrays = read_bundle(path, "program")
        try:
            header = _HEADER.validate_python(raw)
            accelerator = Accelerator.from_dict(header.accelerator)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise FileError(f"{path}: program header field {where}: {first['msg']}.") from None
        except AcceleratorError as error:
            raise FileError(f"{path}: {error}") from None
        if header.version != VERSION or header.isa_version != ISA_VERSION:
            raise FileError(
                f"{path}: program version must be {VERSION}.{ISA_VERSION}, not {header.version}."
                f"{header.isa_version}. Compile again."
            )
        instructions, weights = arrays.get("instructions"), arrays.get("weights")
        if (
            instructions is None
            or weights is None
            or instructions.dtype != np.uint32
            or instructions.ndim != 2
            or instructions.shape[1] != INSTRUCTION_WORDS
            or weights.dtype != np.uint8
        ):
            raise FileError(
                f"{path}: program must hold instructions (N, {INSTRUCTION_WORDS}) uint32 and weights uint8. Compile again."
            )
        words = np.pad(weights, (0, -len(weights) % 4)).view("<u4")
        if checksum(instructions) ^ checksum(words) != header.checksum:
            raise FileError(
                f"{path}: program checksum must be {header.checksum:#010x}; the file is damaged. Compile again."
            )
        names = ("name", "setup_entry", "frame_entry", "scratch_bytes", "input", "output", "layers")
        fields = {name: getattr(header, name) for name in names}
        return cls(accelerator=accelerator, instructions=instructions, weights=weights, **fields)

    def require(self, accelerator: Accelerator) -> None:
        """Raise FileError with a readable difference where the program is for another accelerator."""
        if accelerator.hash == self.accelerator.hash:
            return
        mine, theirs = self.accelerator.to_dict(), accelerator.to_dict()
        differences = [f"{k} {mine[k]} here, {theirs[k]} there" for k in mine if mine[k] != theirs[k]]
        raise FileError(
            f"program {self.name!r} must be for this accelerator ({accelerator.hash:016x}), not for "
            f"{self.accelerator.hash:016x}: {'; '.join(differences)}. Compile again."
        )


def checksum(words: np.ndarray) -> int:
    """XOR of all 32-bit words."""
    return int(np.bitwise_xor.reduce(np.asarray(words, dtype=np.uint32).ravel(), initial=0))


def image(program: Program) -> np.ndarray:
    """What PROGRAM points to in DRAM, uint32: a header as long as an instruction, then the instructions.

    Header words: magic, ISA version, hash low, hash high, number of instructions, checksum of the instructions, 0...
    """
    header = np.zeros(INSTRUCTION_WORDS, dtype="<u4")
    hash_ = program.accelerator.hash
    header[:6] = (
        MAGIC,
        ISA_VERSION,
        hash_ & 0xFFFF_FFFF,
        hash_ >> 32,
        len(program.instructions),
        checksum(program.instructions),
    )
    return np.concatenate([header, program.instructions.ravel()])
