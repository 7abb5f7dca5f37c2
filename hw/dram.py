"""A program's buffers in DRAM: where they lie and what they hold."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..arch import program as program_file
from ..arch.accelerator import Accelerator
from ..arch.program import Program

__all__ = ["AddressMap", "footprint", "image", "pack", "read_output", "striped", "unstriped"]

_FILL = 0xA5
"""DRAM that nobody wrote."""
_ALIGNMENT = 4096
"""Of buffers in DRAM, at least; two never touch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddressMap:
    """Where a program's buffers lie in DRAM: byte addresses, aligned to 4 KiB and to whole blocks, with gaps to catch
    stray writes. Sizes are those of the registers; in DRAM a buffer takes `footprint` bytes."""

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
        alignment = max(_ALIGNMENT, program.accelerator.block_bytes)

        def place(size: int) -> int:
            nonlocal position
            start = position
            position = -(-(start + size + 1) // alignment) * alignment
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

    a = program.accelerator
    put(places.program, program_file.image(program))
    put(places.weights, striped(a, program.weights))
    for start, frame in zip(places.inputs, codes, strict=True):
        put(start, striped(a, pack(a, program.input.pack(a, frame))))
    return dram


def read_output(program: Program, dram: np.ndarray, start: int, places: AddressMap) -> np.ndarray:
    """Codes (positions, channels) of the output buffer at `start`."""
    a = program.accelerator
    rows = unstriped(a, dram[start : start + footprint(a, places.output_bytes)])[: places.output_bytes]
    rows = rows.reshape(-1, _dram_row_bytes(a))
    return program.output.unpack(a, rows[:, : a.scratchpad_row_bytes])


def footprint(accelerator: Accelerator, size: int) -> int:
    """Bytes of DRAM that a buffer of `size` bytes takes: whole blocks, unless there is one port."""
    block = 1 if accelerator.ports == 1 else accelerator.block_bytes
    return -(-size // block) * block


def striped(accelerator: Accelerator, data: np.ndarray) -> np.ndarray:
    """A buffer (bytes) as it lies in DRAM, uint8, with zeros up to its footprint: in each block of lines port 0's beats
    come first, then those of the next port (docs/machine.md, "DRAM")."""
    a, raw = accelerator, np.ascontiguousarray(data).view(np.uint8).ravel()
    raw = np.pad(raw, (0, footprint(a, len(raw)) - len(raw)))
    if a.ports == 1:
        return raw
    return raw.reshape(-1, a.burst_beats, a.ports, a.bus_bytes).swapaxes(1, 2).ravel()


def unstriped(accelerator: Accelerator, data: np.ndarray) -> np.ndarray:
    """The inverse of `striped` for whole blocks."""
    a = accelerator
    if a.ports == 1:
        return data
    return data.reshape(-1, a.ports, a.burst_beats, a.bus_bytes).swapaxes(1, 2).ravel()


def _dram_row_bytes(accelerator: Accelerator) -> int:
    return accelerator.pitch(accelerator.scratchpad_row_bytes)


def pack(accelerator: Accelerator, rows: np.ndarray) -> np.ndarray:
    """Scratchpad rows (rows, row bytes) as they lie in DRAM: each starts a line."""
    return np.pad(rows, ((0, 0), (0, _dram_row_bytes(accelerator) - rows.shape[1])))
