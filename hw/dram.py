"""A program's buffers in DRAM: where they lie and what they hold."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..arch import program as program_file
from ..arch.accelerator import Accelerator
from ..arch.program import Program

__all__ = ["AddressMap", "image", "pack", "read_output"]

_FILL = 0xA5
"""DRAM that nobody wrote."""
_ALIGNMENT = 4096
"""Of buffers in DRAM; two never touch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddressMap:
    """Where a program's buffers lie in DRAM: byte addresses, 4 KiB aligned, with gaps to catch stray writes."""

    program: int
    weights: int
    scratch: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_bytes: int
    output_bytes: int
    size: int
    """Bytes of DRAM."""

    @classmethod
    def of(cls, program: Program, frames: int) -> AddressMap:
        """Buffers for `frames` images."""
        position = 0

        def place(size: int) -> int:
            nonlocal position
            start = position
            position = -(-(start + size + 1) // _ALIGNMENT) * _ALIGNMENT
            return start

        row_bytes = _dram_row_bytes(program.accelerator)
        input_bytes = program.input.rows(program.accelerator) * row_bytes
        output_bytes = program.output.rows(program.accelerator) * row_bytes
        return cls(
            program=place(program_file.image(program).nbytes),
            weights=place(len(program.weights)),
            scratch=place(program.scratch_bytes),
            inputs=tuple(place(input_bytes) for _ in range(frames)),
            outputs=tuple(place(output_bytes) for _ in range(frames)),
            input_bytes=input_bytes,
            output_bytes=output_bytes,
            size=position + (1 << 16),
        )


def image(program: Program, codes: np.ndarray, places: AddressMap) -> np.ndarray:
    """DRAM before the first run, uint8: program, weights and the packed input of each frame."""
    dram = np.full(places.size, _FILL, dtype=np.uint8)

    def put(start: int, data: np.ndarray) -> None:
        raw = np.ascontiguousarray(data).view(np.uint8).ravel()
        dram[start : start + len(raw)] = raw

    put(places.program, program_file.image(program))
    put(places.weights, program.weights)
    for start, frame in zip(places.inputs, codes, strict=True):
        put(start, pack(program.accelerator, program.input.pack(program.accelerator, frame)))
    return dram


def read_output(program: Program, dram: np.ndarray, start: int, places: AddressMap) -> np.ndarray:
    """Codes (positions, channels) of the output buffer at `start`."""
    rows = dram[start : start + places.output_bytes].reshape(-1, _dram_row_bytes(program.accelerator))
    return program.output.unpack(program.accelerator, rows[:, : program.accelerator.scratchpad_row_bytes])


def _dram_row_bytes(accelerator: Accelerator) -> int:
    return accelerator.beats(accelerator.scratchpad_row_bytes) * accelerator.bus_bytes


def pack(accelerator: Accelerator, rows: np.ndarray) -> np.ndarray:
    """Scratchpad rows (rows, row bytes) as they lie in DRAM: each starts a bus beat."""
    return np.pad(rows, ((0, 0), (0, _dram_row_bytes(accelerator) - rows.shape[1])))
