"""What a frame asks of the way to DRAM, and what the machine's ports and the board give."""

from __future__ import annotations

from ..arch import isa
from ..arch.accelerator import NORM_BYTES, PARAM_BYTES, TABLE_ROW_BYTES
from ..arch.isa import LoadTarget, Opcode
from ..arch.program import Program
from .board import Board

__all__ = ["frame_bytes", "rows"]


def rows(program: Program, cycles: int, board: Board) -> list[dict]:
    """A row for reads, one for writes and one for both of a frame of `cycles` at the board's clock.

    Bytes are those on the bus, rows padded to lines; "rows" is their part that is not padding. The ports move data
    together, so each has the same share. "MB/s per port" is needed on average; "port MB/s" is a beat per cycle in each
    direction, "board MB/s" what the board has behind all its ports, for both.
    """
    a = program.accelerator
    interface, clock = board.interface, board.clock_mhz
    found = []
    useful, moved = frame_bytes(program)
    for name, opcodes in (
        ("read", (Opcode.LOAD,)),
        ("write", (Opcode.STORE,)),
        ("all", (Opcode.LOAD, Opcode.STORE)),
    ):
        size, needed = (sum(amounts[opcode] for opcode in opcodes) for amounts in (moved, useful))
        each = size / a.ports / cycles * clock
        port = a.bus_bytes * clock * len(opcodes)
        found.append(
            {
                "direction": name,
                "ports": f"{a.ports} of {interface.ports}",
                "bytes": size,
                "rows": f"{needed / size:.1%}" if size else "",
                "MB/s per port": each,
                "port MB/s": float(port),
                "busy": f"{each / port:.1%}",
                "board MB/s": interface.bandwidth_bytes_per_second / 1e6,
            }
        )
    return found


def frame_bytes(program: Program) -> tuple[dict[Opcode, int], dict[Opcode, int]]:
    """Bytes of rows, and with their padding, that LOAD and STORE move in a frame."""
    a = program.accelerator
    row_bytes = {
        LoadTarget.SCRATCHPAD: a.scratchpad_row_bytes,
        LoadTarget.WEIGHT: a.weight_row_bytes,
        LoadTarget.PARAM: PARAM_BYTES * a.drain,
        LoadTarget.NORM: NORM_BYTES * a.vector,
    }
    useful, moved = ({Opcode.LOAD: 0, Opcode.STORE: 0} for _ in range(2))
    for words in program.instructions[program.frame_entry :]:
        i = isa.decode(words)
        if i.opcode == Opcode.END:
            break
        if i.opcode in moved:
            target = LoadTarget(i.target) if i.opcode == Opcode.LOAD else LoadTarget.SCRATCHPAD
            size = row_bytes.get(target, TABLE_ROW_BYTES)
            useful[i.opcode] += i.rows * size
            moved[i.opcode] += i.rows * a.pitch(size)
    return useful, moved
