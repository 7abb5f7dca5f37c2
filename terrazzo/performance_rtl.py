"""The frames of `terrazzo.performance` in Verilog: bits equal to the reference's, cycles to the cycle model's."""

from __future__ import annotations

import sys

import numpy as np

from . import performance, results_table
from .hw import top
from .hw.verilog import generate
from .performance import ROWS
from .sim import cycle, reference
from .sim.rtl import RtlSimulator

__all__ = ["main", "measure", "table"]


def measure(job: results_table.Job) -> dict:
    """Generate a row's machine, compile it unless that is cached, and run one frame of random codes; a JSON object."""
    row, steps = ROWS[job.row], results_table.Steps()
    graph, built = performance.program(job.row)
    shape = graph.tensor(graph.input).shape
    codes = np.random.default_rng(0).integers(-128, 128, (1, *shape))
    predicted = cycle.predict(built, row.board.interface.memory).cycles
    job.progress("Verilog and its simulation model")
    with steps.step("Verilog"):
        text = generate(top.Top(row.accelerator), top.MODULE)  # not from the cache: its time is to be told
    steps.found["Verilog"]["children_peak_mib"] = results_table.children_peak_mib()
    with steps.step("build"):
        simulator = RtlSimulator(row.accelerator, text)
    steps.found["build"]["children_peak_mib"] = results_table.children_peak_mib()
    job.progress(f"{predicted} cycles in RTL")
    with steps.step("RTL"):
        rtl = simulator.run(built, codes, row.board.interface.memory, max_cycles=4 * predicted + 1_000_000)
    expected = np.asarray(reference.run(graph, codes)).reshape(rtl.outputs.shape)
    cycles = int(rtl.cycles[0])
    mismatches = int((rtl.outputs != expected).sum())
    return {
        "cycles": cycles,
        "cycle_model_cycles": predicted,
        "frames_per_second": round(row.board.clock_mhz * 1e6 / cycles, 1),
        "outputs": int(expected.size),
        "mismatches": mismatches,
        "distinct_output_codes": len(np.unique(expected)),
        "equal": mismatches == 0 and cycles == predicted,
        "steps": steps.found,
        "command": f"python -m terrazzo.performance_rtl --only {job.row} --force",
    }


def table(rows: dict[str, dict]) -> str:
    """The rows as Markdown."""
    header = [
        "design",
        "RTL cycles",
        "cycle model",
        "FPS",
        "outputs that differ from the reference",
        "Verilog",
        "build (of each machine once)",
        "RTL",
    ]
    lines = [
        [
            f"`{name}`",
            f"{row['cycles']:,}",
            f"{row['cycle_model_cycles']:,}",
            f"{row['frames_per_second']:.1f}",
            f"{row['mismatches']} of {row['outputs']:,}",
            *(_taken(row["steps"][step]) for step in ("Verilog", "build")),
            results_table.taken(row["steps"]["RTL"]),
        ]
        for name, row in rows.items()
    ]
    return results_table.markdown(header, lines)


def _taken(step: dict) -> str:
    return f"{results_table.taken(step)}, largest process below {step['children_peak_mib']} MiB"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    part = results_table.Part(
        name="performance-rtl", module="terrazzo.performance_rtl", rows=list(ROWS), measure=measure, table=table,
        data=False,
    )  # fmt: skip
    return results_table.run(part, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
