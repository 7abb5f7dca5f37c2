"""What the machines of `terrazzo.performance` occupy on the board, by synthesis, beside the estimate."""

from __future__ import annotations

import dataclasses
import re
import sys

from . import results_table
from .arch.accelerator import Accelerator
from .boards import estimate
from .boards.board import Resources
from .boards.paths import paths
from .boards.synthesis import FLOWS, count, verilog
from .hw import top
from .hw.verilog import module_bodies, module_instances
from .performance import ROWS

__all__ = ["LEVELS", "LIMITS", "main", "measure", "replaced", "table"]

LIMITS = {"lut": 0.85, "ff": 1, "dsp": 0.95, "bram": 0.9}
"""The share of the board that a design may take."""
LEVELS = 10
"""LUTs and carry chains of a path."""


def replaced(accelerator: Accelerator, text: str) -> dict[str, str]:
    """The modules of `text`, a machine's Verilog for the board, that are others in its simulation.

    Raises ValueError where the hierarchies differ.
    """
    simulated = top.verilog(accelerator)
    if module_instances(simulated) != module_instances(text):
        raise ValueError("the simulated hierarchy must be the synthesised one")
    bodies = module_bodies(simulated)
    return {name: body for name, body in module_bodies(text).items() if body != bodies[name]}


def measure(job: results_table.Job) -> dict:
    """Count a row's machine, modules in the cache without synthesis; a JSON object."""
    accelerator, board, steps = ROWS[job.row].accelerator, ROWS[job.row].board, results_table.Steps()
    with steps.step("Verilog"):
        text = verilog(accelerator, board)
    bodies = replaced(accelerator, text)
    parts = {f"{top.MODULE}_{kind.__name__.lower()}" for kind in FLOWS[board.flow].primitives}
    with steps.step("synthesis"):
        found = count(text, top.MODULE, board, job.progress)
    longest = paths(text, top.MODULE, board)
    has = board.budget
    return {
        "accelerator": accelerator.to_dict(),
        "resources": dataclasses.asdict(found),
        "shares": {name: round(getattr(found, name) / getattr(has, name), 4) for name in LIMITS},
        "fits": _fits(found, board.budget),
        "modules": len(longest),
        "levels": {one.module.removeprefix(f"{top.MODULE}_"): one.whole.levels for one in longest},
        "replaced": list(bodies),
        "equal": all(re.sub(r"_\d+$", "", name) in parts for name in bodies),
        "steps": steps.found,
        "command": f"python -m terrazzo.performance_synthesis --only {job.row} --force",
    }


def _fits(found: Resources, has: Resources) -> bool:
    return all(getattr(found, name) <= share * getattr(has, name) for name, share in LIMITS.items())


def table(rows: dict[str, dict]) -> str:
    """The rows as Markdown."""
    header = [
        "design",
        *(f"{name.upper()} (at most {share:.0%})" for name, share in LIMITS.items()),
        f"longest path of {LEVELS} levels at most",
    ]
    lines = [
        [
            name,
            *(
                f"{row['resources'][kind]:,} = {row['shares'][kind]:.1%}, estimate {error:+.1%}"
                for kind, error in _errors(name, row).items()
            ),
            _longest(row["levels"]),
        ]
        for name, row in rows.items()
    ]
    return results_table.markdown(header, lines)


def _errors(name: str, row: dict) -> dict[str, float]:
    """How far the estimate of a row's machine is from its count."""
    guess = estimate(Accelerator.from_dict(row["accelerator"]), ROWS[name].board)
    return {kind: getattr(guess, kind) / row["resources"][kind] - 1 for kind in LIMITS}


def _longest(levels: dict[str, int]) -> str:
    name = max(levels, key=levels.get)
    above = sum(number > LEVELS for number in levels.values())
    return f"{levels[name]} in {name}; {above} of {len(levels)} modules above"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    part = results_table.Part(
        name="performance-synthesis", module="terrazzo.performance_synthesis", rows=list(ROWS), measure=measure,
        table=table, data=False,
    )  # fmt: skip
    return results_table.run(part, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
