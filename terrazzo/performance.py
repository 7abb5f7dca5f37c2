"""Frames per second of whole networks within the budgets of boards, by the cycle model, beside the published accelerators."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from . import results_table
from .api import utilization
from .arch.accelerator import Accelerator
from .arch.errors import UserError
from .arch.graph import Graph
from .arch.isa import Engine
from .arch.program import Program
from .arch.schemes import Scheme
from .boards import (
    PYNQ_Z1,
    ZC706,
    ZCU102,
    Board,
    deit_accelerator,
    estimate,
    mixed_accelerator,
    mobilenet_accelerator,
    pynq_accelerator,
    quads_accelerator,
    zc706_accelerator,
)
from .boards.search import Budget
from .compiler import Compiled, compiled
from .sim import cycle
from .synthetic import dealt, deit, mobilenet_v2, resnet18

__all__ = ["ROWS", "Row", "accuracy", "main", "measure", "program", "table"]

RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
"""Where accuracies stand."""
F8, F4 = Scheme.FIXED8, Scheme.FIXED4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A network on a machine, and what it is to reach."""

    model: str
    network: Callable[[], Graph]
    """Makes it, with Fixed-8 rows and random weights."""
    accelerator: Accelerator
    board: Board = ZCU102
    mixture: Mapping[Scheme, int] = dataclasses.field(default_factory=lambda: {F8: 1})
    """Rows of each scheme in a block, see `synthetic.dealt`."""
    rows_apart: int = 1
    """Residues of rows that follow the mixture each by itself, `drain` of `synthetic.dealt`: a divisor of the machine's."""
    activations: str = "A8"
    """Their bits."""
    accuracy: str
    """The row of docs/results.md, with this mixture or less Fixed-8 rows and these bits, of a model of this one's family."""
    published: str
    """The fastest published design at this precision on the same chip and clock, in frames per second."""
    frames: float | None
    """Frames per second that are to be reached; None where they are reported."""
    utilization: float | None = None

    @property
    def precision(self) -> str:
        """Schemes of rows, with their parts of a block, and activations."""
        whole = sum(self.mixture.values())
        if len(self.mixture) == 1:
            return f"Fixed-8, {self.activations}"
        parts = ", ".join(f"{count / whole:.0%} {_NAMES[s]}" for s, count in self.mixture.items())
        return f"{parts}, {self.activations}"

    def graph(self) -> Graph:
        """The network with random weights and its mixture of rows."""
        return dealt(self.network(), self.mixture, self.rows_apart)


_NAMES = {
    F8: "Fixed-8",
    F4: "Fixed-4",
    Scheme.POT4: "PoT-4",
    Scheme.SP2_4: "SP2-4",
    Scheme.TERNARY: "ternary",
    Scheme.BINARY: "binary",
}
_THIRD = {F8: 8, F4: 16}
"""A block of 24 rows, which divides the layers of all DeiTs, so that a block of 64 lanes never has more Fixed-8 rows than lanes."""
_SMALL = functools.partial(deit, 384, 12, 6)
_BASE = functools.partial(deit, 768, 12, 12)
ROWS = {
    "deit-t-fixed8": Row(
        model="DeiT-Tiny", network=deit, accelerator=deit_accelerator(), accuracy="deit-tiny-fixed8",
        published="HeatViT 183.4", frames=440, utilization=0.75,
    ),
    "deit-s-fixed8": Row(
        model="DeiT-Small", network=_SMALL, accelerator=deit_accelerator(), accuracy="deit-tiny-fixed8",
        published="Auto-ViT-Acc 78.1", frames=120, utilization=0.85,
    ),
    "deit-b-fixed8": Row(
        model="DeiT-Base", network=_BASE, accelerator=deit_accelerator(), accuracy="deit-tiny-fixed8",
        published="Auto-ViT-Acc 25.9, HeatViT (lightly pruned) 36.1", frames=38, utilization=0.9,
    ),
    "deit-s-mixed": Row(
        model="DeiT-Small", network=_SMALL, accelerator=mixed_accelerator(), mixture=_THIRD, rows_apart=4,
        accuracy="deit-tiny-mixed", published="Auto-ViT-Acc 99.7", frames=190,
    ),
    "deit-b-mixed": Row(
        model="DeiT-Base", network=_BASE, accelerator=mixed_accelerator(), mixture=_THIRD, rows_apart=4,
        accuracy="deit-tiny-mixed", published="Auto-ViT-Acc 34.0", frames=60,
    ),
    "deit-s-fixed4-a4": Row(
        model="DeiT-Small", network=functools.partial(_SMALL, bits=4, attended=4), accelerator=quads_accelerator(),
        mixture={F8: 8, F4: 88}, rows_apart=4, activations="A4 (Q, K, V, E: 4)",
        accuracy="deit-tiny-fixed4-a4-qkve4", published="Auto-ViT-Acc 155.8", frames=300,
    ),
    "deit-b-fixed4-a4": Row(
        model="DeiT-Base", network=functools.partial(_BASE, bits=4, attended=4), accelerator=quads_accelerator(),
        mixture={F8: 8, F4: 88}, rows_apart=4, activations="A4 (Q, K, V, E: 4)",
        accuracy="deit-tiny-fixed4-a4-qkve4", published="Auto-ViT-Acc 56.8", frames=88,
    ),
    "deit-s-mixed-zc706": Row(
        model="DeiT-Small", network=_SMALL, accelerator=zc706_accelerator(), board=ZC706, mixture={F8: 8, F4: 56},
        rows_apart=8, accuracy="deit-tiny-fixed4", published="none", frames=None,
    ),
    "resnet18-fixed4-a5": Row(
        model="ResNet-18", network=functools.partial(resnet18, bits=5), accelerator=mixed_accelerator(),
        mixture={F8: 1, F4: 15}, activations="A5", accuracy="resnet20-fixed4-a5", published="FILM-QNN 214.8",
        frames=420,
    ),
    "resnet18-fixed4-a5-pynq": Row(
        model="ResNet-18", network=functools.partial(resnet18, bits=5), accelerator=pynq_accelerator(), board=PYNQ_Z1,
        mixture={F8: 1, F4: 15}, activations="A5", accuracy="resnet20-fixed4-a5", published="FILM-QNN 27.8", frames=35,
    ),
    "mobilenet-v2-fixed4-a5": Row(
        model="MobileNetV2", network=functools.partial(mobilenet_v2, bits=5), accelerator=mobilenet_accelerator(),
        mixture={F8: 2, F4: 38}, activations="A5", accuracy="mobilenet-v2-fixed4-a5", published="FILM-QNN 537.9",
        frames=800,
    ),
}  # fmt: skip


def accuracy(name: str) -> dict:
    """Top-1 as float and as integer graph, in per cent, that docs/results.md has in a row. Raises UserError."""
    text = RESULTS.read_text() if RESULTS.is_file() else ""
    found = re.search(rf"^\| `{re.escape(name)}` \|(.*)$", text, re.MULTILINE)
    if not found:
        raise UserError(
            f"{RESULTS.name} must have the row {name}; measure it: python -m terrazzo.results --only {name}"
        )
    cells = [cell.strip() for cell in found[1].split("|")]
    return {
        "row": name,
        "rows_percent": cells[1],
        "float_top1": float(cells[5]),
        "integer_top1": float(cells[6]),
    }


def program(row: str) -> tuple[Graph, Program]:
    """The graph of one of `ROWS` and its program."""
    graph, built = _compiled(row)
    return graph, built.program


def _compiled(row: str) -> tuple[Graph, Compiled]:
    found, memory = ROWS[row], ROWS[row].board.interface.memory
    graph = found.graph()
    return graph, compiled(graph, found.accelerator, judge=lambda p: cycle.predict(p, memory).cycles)


def measure(job: results_table.Job) -> dict:
    """Compile a row and predict its frame on the board's memory; a JSON object."""
    row, steps = ROWS[job.row], results_table.Steps()
    a, clock = row.accelerator, row.board.clock_mhz * 1e6
    known = accuracy(row.accuracy)
    with steps.step("compile"):
        _, found = _compiled(job.row)
    built = found.program
    memory = row.board.interface.memory
    cycle.predict(built, memory)
    with steps.step("cycle model"):
        timing = cycle.predict(built, memory)
    spent = timing.spent[:, Engine.MATRIX].sum(axis=0)
    need = estimate(a, row.board)
    peak = {kind: lanes * a.columns * a.depth for kind, lanes in a.lanes.by_scheme.items()}
    return {
        "model": row.model,
        "accelerator": a.to_dict(),
        "multipliers": a.multipliers,
        "board": row.board.name,
        "clock_mhz": row.board.clock_mhz,
        "memory": dataclasses.asdict(memory),
        "macs": sum(layer.macs for layer in built.layers),
        "cycles": timing.cycles,
        "frames_per_second": round(clock / timing.cycles, 1),
        "utilization": round(utilization(built, timing.cycles), 4),
        "utilization_by_kind": {
            kind.name.lower(): round(found.macs_by_kind[kind] / (products * timing.cycles), 4)
            for kind, products in peak.items()
        },
        "estimate": dataclasses.asdict(need),
        "within_budget": Budget().holds(need, row.board),
        "accuracy": known,
        "matrix_engine": {kind.name.lower(): int(spent[kind]) for kind in cycle.Activity},
        "instructions": len(built.instructions),
        "steps": steps.found,
        "command": f"python -m terrazzo.performance --only {job.row} --force",
    }


def table(rows: dict[str, dict]) -> str:
    """The rows as Markdown."""
    header = [
        "design", "board, MHz", "multipliers", "lanes", "lanes x columns x depth", "drain, vector", "ports",
        "cycles (cycle model)", "FPS", "utilization", "to reach: FPS, utilization", "published FPS",
        "accuracy row: top-1 (float)", "estimate of LUT, FF, DSP, BRAM (% of the board)",
        "array computing / draining / waiting for memory / for a semaphore",
    ]  # fmt: skip
    lines = []
    for name, row in rows.items():
        a, target = row["accelerator"], ROWS[name]
        spent, known = row["matrix_engine"].values(), row["accuracy"]
        kinds = row["utilization_by_kind"]
        used = f"{row['utilization']:.1%}"
        if len(kinds) > 1:
            used += (
                " (" + ", ".join(f"{_NAMES[Scheme[k.upper()]]} {part:.1%}" for k, part in kinds.items()) + ")"
            )
        reach = "reported" if target.frames is None else f"{target.frames:g}"
        reach += "" if target.utilization is None else f", {target.utilization:.0%}"
        lines.append(
            [
                f"{row['model']}, {target.precision}",
                f"{row['board']}, {row['clock_mhz']:g}",
                f"{row['multipliers']:,}",
                _lanes(a["lanes"]),
                f"{Accelerator.from_dict(a).lanes.total} x {a['columns']} x {a['depth']}",
                f"{a['drain']}, {a['vector']}",
                f"{a['ports']} x {8 * a['bus_bytes']} bits",
                f"{row['cycles']:,}",
                f"{row['frames_per_second']:.1f}",
                used,
                reach,
                target.published,
                f"`{known['row']}`: {known['integer_top1']:g} ({known['float_top1']:g})",
                _needs(row, target.board),
                " / ".join(f"{count / row['cycles']:.1%}" for count in spent),
            ]
        )
    return results_table.markdown(header, lines)


def _lanes(lanes: Mapping[str, int]) -> str:
    """Lanes of each kind, and how many of them are of its other kinds."""
    others = {
        "fixed8": {"fixed8_luts": "in LUTs"},
        "fixed4": {"fixed4_triples": "three in a multiplier", "fixed4_quads": "on multipliers"},
    }
    parts = []
    for scheme, name in _NAMES.items():
        kind = scheme.name.lower()
        if not lanes.get(kind):
            continue
        some = [
            f"{lanes[field]} {place}" for field, place in others.get(kind, {}).items() if lanes.get(field)
        ]
        parts.append(f"{lanes[kind]} {name}" + (f" ({', '.join(some)})" if some else ""))
    return " + ".join(parts)


def _needs(row: dict, board: Board) -> str:
    has = dataclasses.asdict(board.budget)
    text = ", ".join(f"{need:,} ({need / has[name]:.0%})" for name, need in row["estimate"].items())
    return text if row["within_budget"] else f"{text}: more than the budget"


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
