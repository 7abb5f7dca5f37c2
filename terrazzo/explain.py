"""Where the cycles of a frame went: per layer and engine, by the cycle model."""

from __future__ import annotations

from .api import board_named, utilization
from .arch import isa
from .arch.errors import UserError
from .arch.isa import Engine
from .arch.memory import MemoryModel
from .arch.program import Program
from .sim import cycle

__all__ = ["explain"]


def explain(
    program: Program, layer: str | None = None, *, board: str = "zcu102", memory: MemoryModel | None = None
) -> dict:
    """Cycles that each engine spent computing, draining, and waiting for memory or for a semaphore.

    `frame` has a row for each engine, `layers` one for each layer (or `layer` alone, then with `instructions`) and
    engine that works on it. An instruction that waits counts for its own layer. Waiting overlaps between engines: the
    matrix engine's rows add up to what the array did. Raises UserError for a layer that the program does not have.
    """
    names = [one.name for one in program.layers]
    if layer is not None and layer not in names:
        raise UserError(f"layer must be one of {', '.join(names)}, not {layer!r}")
    timing = cycle.predict(program, memory or board_named(board).interface.memory)
    frame = [_row({"engine": engine.name}, timing.spent[:, engine].sum(axis=0)) for engine in Engine]
    for row in frame:
        row["idle"] = timing.cycles - sum(row[kind] for kind in _KINDS)
    layers = [
        _row({"layer": one.name, "op": one.op, "engine": engine.name}, timing.spent[one.tag, engine])
        for one in program.layers
        if layer in (None, one.name)
        for engine in Engine
        if timing.spent[one.tag, engine].any()
    ]
    result = {
        "cycles": timing.cycles,
        "utilization": f"{utilization(program, timing.cycles):.1%}",
        "frame": frame,
        "layers": layers,
    }
    if layer is not None:
        result["instructions"] = _instructions(program, timing, names.index(layer))
    return result


_KINDS = tuple(kind.name.lower() for kind in cycle.Activity)


def _row(names: dict, spent) -> dict:
    return names | {kind: int(cycles) for kind, cycles in zip(_KINDS, spent, strict=True)}


def _instructions(program: Program, timing: cycle.Timing, tag: int) -> list[dict]:
    """A layer's instructions in the order of the program."""
    rows = []
    for index, words in enumerate(program.instructions):
        instruction = isa.decode(words)
        if timing.start[index] >= 0 and instruction.tag == program.layers[tag].tag:
            waits = [Engine(s // 4).name for s in range(isa.SEMAPHORES) if instruction.wait >> s & 1]
            rows.append(
                {
                    "instruction": index,
                    "engine": instruction.opcode.name,
                    "start": int(timing.start[index]),
                    "end": int(timing.done[index]),
                    "waits for": ", ".join(waits),
                }
            )
    return rows
