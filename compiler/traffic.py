"""Off-chip traffic of a program, against what no program can avoid."""

from __future__ import annotations

import dataclasses

from ..arch import isa
from ..arch.isa import LoadTarget, Opcode, Region
from ..arch.program import Program
from .ir import Memory, row_bytes

__all__ = ["Traffic", "traffic"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes on the bus, rows padded to whole beats."""

    resident: int
    """Weights, parameters and tables that the setup section loads once."""
    weights: int
    """The same, loaded in every frame; so are the following."""
    input: int
    output: int
    stored: int
    """Activations to the SCRATCH region."""
    loaded: int
    """Activations from it."""
    bound: int
    """Every weight, parameter and table once, input once, output once."""

    @property
    def frame(self) -> int:
        """All of a frame."""
        return self.weights + self.input + self.output + self.stored + self.loaded

    @property
    def activations(self) -> int:
        """All of a frame but the content of the program."""
        return self.frame - self.weights

    def to_dict(self) -> dict[str, int | float]:
        """Plain values for reports."""
        ratio = round(self.frame / self.bound, 4)
        return {**dataclasses.asdict(self), "frame": self.frame, "ratio": ratio}


def traffic(program: Program) -> Traffic:
    """What the instructions of a program move."""
    a, moved = program.accelerator, {}
    for index, words in enumerate(program.instructions):
        i = isa.decode(words)
        if i.opcode not in (Opcode.LOAD, Opcode.STORE):
            continue
        memory = Memory(LoadTarget(i.target)) if i.opcode == Opcode.LOAD else Memory.SCRATCHPAD
        size = i.rows * a.pitch(row_bytes(a, memory))
        key = index >= program.frame_entry, i.opcode, Region(i.region)
        moved[key] = moved.get(key, 0) + size

    def of(opcode: Opcode, region: Region, frame: bool = True) -> int:
        return moved.get((frame, opcode, region), 0)

    ends = program.input.rows(a) + program.output.rows(a)
    pitch = a.pitch(row_bytes(a, Memory.SCRATCHPAD))
    return Traffic(
        resident=of(Opcode.LOAD, Region.WEIGHTS, False),
        weights=of(Opcode.LOAD, Region.WEIGHTS),
        input=of(Opcode.LOAD, Region.INPUT),
        output=of(Opcode.STORE, Region.OUTPUT),
        stored=of(Opcode.STORE, Region.SCRATCH),
        loaded=of(Opcode.LOAD, Region.SCRATCH),
        bound=len(program.weights) + ends * pitch,
    )
