"""Frames per second of whole networks on the ZCU102 budget, by the cycle model, beside the published accelerators."""

from __future__ import annotations

import dataclasses
import sys

from . import results_table
from .api import utilization
from .arch.accelerator import Accelerator
from .arch.graph import Graph
from .arch.isa import Engine
from .arch.program import Program
from .boards import ZCU102, deit_accelerator
from .compiler import compiled
from .sim import cycle
from .synthetic import deit

__all__ = ["CLOCK_HZ", "ROWS", "Row", "main", "measure", "program", "table"]

CLOCK_HZ = 150e6
"""Of the published designs, and so of these."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A network on a machine, and what it is to reach."""

    model: str
    dim: int
    heads: int
    accelerator: Accelerator
    published: str
    """The fastest published design at this precision on the same chip and clock, in frames per second."""
    frames: float
    """Frames per second that are to be reached."""
    utilization: float

    def graph(self) -> Graph:
        """The network with random weights."""
        return deit(self.dim, 12, self.heads)


ROWS = {
    "deit-t-fixed8": Row(
        model="DeiT-Tiny", dim=192, heads=3, accelerator=deit_accelerator(),
        published="HeatViT 183.4", frames=440, utilization=0.75,
    ),
    "deit-s-fixed8": Row(
        model="DeiT-Small", dim=384, heads=6, accelerator=deit_accelerator(),
        published="Auto-ViT-Acc 78.1", frames=120, utilization=0.85,
    ),
    "deit-b-fixed8": Row(
        model="DeiT-Base", dim=768, heads=12, accelerator=deit_accelerator(),
        published="Auto-ViT-Acc 25.9, HeatViT (lightly pruned) 36.1", frames=38, utilization=0.9,
    ),
}  # fmt: skip


def program(row: str) -> tuple[Graph, Program]:
    """The graph of one of `ROWS` and its program."""
    graph = ROWS[row].graph()
    return graph, compiled(graph, ROWS[row].accelerator).program


def measure(job: results_table.Job) -> dict:
    """Compile a row and predict its frame on the board's memory; a JSON object."""
    row, steps = ROWS[job.row], results_table.Steps()
    with steps.step("compile"):
        _, built = program(job.row)
    memory = ZCU102.interface.memory
    cycle.predict(built, memory)
    with steps.step("cycle model"):
        timing = cycle.predict(built, memory)
    spent = timing.spent[:, Engine.MATRIX].sum(axis=0)
    return {
        "model": row.model,
        "accelerator": row.accelerator.to_dict(),
        "multipliers": row.accelerator.multipliers,
        "memory": dataclasses.asdict(memory),
        "macs": sum(layer.macs for layer in built.layers),
        "cycles": timing.cycles,
        "frames_per_second": round(CLOCK_HZ / timing.cycles, 1),
        "utilization": round(utilization(built, timing.cycles), 4),
        "matrix_engine": {kind.name.lower(): int(spent[kind]) for kind in cycle.Activity},
        "instructions": len(built.instructions),
        "steps": steps.found,
        "command": f"python -m terrazzo.performance --only {job.row} --force",
    }


def table(rows: dict[str, dict]) -> str:
    """The rows as Markdown."""
    header = [
        "design", "multipliers", "lanes x columns x depth", "drain, vector", "ports",
        "cycles (cycle model)", "FPS at 150 MHz", "utilization", "to reach: FPS, utilization", "published FPS",
        "array computing / draining / waiting for memory / for a semaphore",
    ]  # fmt: skip
    lines = []
    for name, row in rows.items():
        a, target = row["accelerator"], ROWS[name]
        spent = row["matrix_engine"].values()
        lines.append(
            [
                f"{row['model']}, Fixed-8, A8",
                f"{row['multipliers']:,}",
                f"{Accelerator.from_dict(a).lanes.total} x {a['columns']} x {a['depth']}",
                f"{a['drain']}, {a['vector']}",
                f"{a['ports']} x {8 * a['bus_bytes']} bits",
                f"{row['cycles']:,}",
                f"{row['frames_per_second']:.1f}",
                f"{row['utilization']:.1%}",
                f"{target.frames:g}, {target.utilization:.0%}",
                target.published,
                " / ".join(f"{count / row['cycles']:.1%}" for count in spent),
            ]
        )
    return results_table.markdown(header, lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    part = results_table.Part(
        name="performance",
        module="terrazzo.performance",
        rows=list(ROWS),
        measure=measure,
        table=table,
        data=False,
    )
    return results_table.run(part, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
