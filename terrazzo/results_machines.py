"""Generating and compiling the Verilog of the machines that whole frames run on."""

from __future__ import annotations

import sys
import time

from . import results_table
from .hw import top
from .results_graphs import MACHINES
from .sim.rtl import RtlSimulator

__all__ = ["main", "measure", "table"]


def measure(job: results_table.Job) -> dict:
    """Generate and compile one of `MACHINES`, again where a compiled model is in the cache; a JSON object."""
    machine, steps = MACHINES[job.row], results_table.Steps()
    with steps.step("Verilog"):
        text = top.verilog(machine)
    job.progress("compiling the simulation model")
    began = time.time()
    with steps.step("build"):
        executable = RtlSimulator(machine, text).executable
    if executable.stat().st_mtime < began:
        executable.unlink()
        with steps.step("build"):
            RtlSimulator(machine, text)
    return {
        "multipliers": machine.multipliers,
        "lanes": {scheme.name: count for scheme, count in machine.lanes.by_scheme.items()},
        "hash": f"{machine.hash:016x}",
        "verilog_bytes": len(text),
        "steps": steps.found,
        "build_largest_process_mib": results_table.children_peak_mib(),
        "command": f"python -m terrazzo.results_machines --only {job.row} --force",
    }


def table(rows: dict[str, dict]) -> str:
    """The rows as Markdown."""
    header = [
        "machine",
        "multipliers",
        "lanes",
        "Verilog, MB",
        "generated",
        "compiled",
        "its largest process, MiB",
    ]
    lines = []
    for name, row in rows.items():
        lanes = " ".join(f"{scheme} {count}" for scheme, count in row["lanes"].items())
        size = f"{row['verilog_bytes'] / 1e6:.2f}"
        steps = [results_table.taken(row["steps"][step]) for step in ("Verilog", "build")]
        lines.append([name, row["multipliers"], lanes, size, *steps, row["build_largest_process_mib"]])
    return results_table.markdown(header, lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    part = results_table.Part(
        name="machines", module="terrazzo.results_machines", rows=list(MACHINES), measure=measure, table=table
    )
    return results_table.run(part, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
