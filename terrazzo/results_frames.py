"""Whole frames of the graphs of `results_graphs` in all simulators: equal outputs, equal cycles, and what each takes."""

from __future__ import annotations

import sys
import time

import numpy as np

from . import results_graphs, results_table
from .api import utilization
from .arch.memory import MemoryModel
from .boards import ZCU102
from .compiler import compiled
from .hw import top
from .results_graphs import TARGETS
from .sim import cycle, functional, reference
from .sim.rtl import RtlSimulator

__all__ = ["main", "measure", "table"]

IMAGES = 2
_TRAFFIC = {
    "resident": "loaded once",
    "weights": "weights again",
    "input": "input",
    "output": "output",
    "stored": "activations out",
    "loaded": "activations in",
    "frame": "all of a frame",
    "bound": "bound: weights, input, output once",
}
MEMORY = MemoryModel(latency=ZCU102.interface.latency_cycles)


def measure(job: results_table.Job) -> dict:
    """Compile the graph of one of `TARGETS` and run `IMAGES` frames; a JSON object.

    Each simulator's step is that of frames after a first one, which loads or compiles its kernels; the step "RTL" has
    the setup too. Where the cache lacks the machine's model it is compiled before, see `results_machines`.
    """
    target, steps = TARGETS[job.row], results_table.Steps()
    graph, machine = results_graphs.load(job.row, job.files), target.accelerator
    codes = reference.quantize_batch(graph, results_graphs.held_out(target.model, job.data, IMAGES))
    with steps.step("compile"):
        built = compiled(graph, machine)
    program = built.program
    job.progress("reference, functional simulator, cycle model")
    reference.run(graph, codes[:1])
    with steps.step("reference"):
        expected = reference.run(graph, codes)
    functional.run(program, codes[:1])
    with steps.step("functional"):
        executed = functional.run(program, codes)
    cycle.predict(program, MEMORY)
    with steps.step("cycle model"):
        timing = cycle.predict(program, MEMORY)
    job.progress("compiling the RTL simulation, unless it is cached")
    simulator = RtlSimulator(machine, top.verilog(machine))
    ends: list[float] = []
    job.progress(f"{IMAGES} frames of {timing.cycles} cycles in RTL")
    limit = 4 * timing.cycles + 100_000
    with steps.step("RTL"):
        began = time.perf_counter()
        rtl = simulator.run(
            program, codes, MEMORY, max_cycles=limit, progress=lambda _: ends.append(time.perf_counter())
        )
    expected = np.asarray(expected).reshape(rtl.outputs.shape)
    frames = np.diff([began, *ends])
    predicted = {tag: (span.start, span.done) for tag, span in timing.layers.items()}
    found = {
        "model": target.model,
        "machine": target.machine,
        "images": IMAGES,
        "rtl_mismatches": _different(rtl.outputs, expected),
        "functional_mismatches": _different(executed, expected),
        "rtl_cycles": rtl.cycles.tolist(),
        "cycle_model_cycles": timing.cycles,
        "layers": len(program.layers),
        "layers_in_the_predicted_cycles": sum(
            rtl.spans[0].get(tag) == span for tag, span in predicted.items()
        ),
        "layers_with_cycles": len(predicted),
        "setup_cycles": rtl.setup_cycles,
    }
    exact = not found["rtl_mismatches"] and not found["functional_mismatches"]
    found["equal"] = exact and set(found["rtl_cycles"]) == {timing.cycles} and predicted == rtl.spans[0]
    return found | {
        "distinct_output_codes": len(np.unique(expected)),
        "utilization": round(utilization(program, timing.cycles), 4),
        "rtl_frame_seconds": [round(float(seconds), 2) for seconds in frames],
        "rtl_process_mib": results_table.children_peak_mib(),
        "rtl_cycles_per_second": round(timing.cycles / float(frames[-1])),
        "instructions": len(program.instructions),
        "traffic": built.traffic.to_dict(),
        "activations_bound": built.activations_bound,
        "steps": steps.found,
        "command": f"python -m terrazzo.results_frames --only {job.row} --force",
    }


def _different(outputs: np.ndarray, expected: np.ndarray) -> int:
    """Images whose outputs are not those of the reference."""
    return int((outputs != expected).any(axis=(1, 2)).sum())


def table(rows: dict[str, dict]) -> str:
    """What is equal, what the steps take, and the traffic, as Markdown."""
    names = (
        "model and machine|images|differ from reference: RTL / functional|RTL cycles|cycle model|utilization"
    )
    header = [
        *names.split("|"),
        "FPS at 150 MHz",
        "RTL frame, s",
        "RTL kcycles/s",
        "RTL process, MiB",
        "equal",
    ]
    exact = [
        [
            f"`{name}`",
            row["images"],
            f"{row['rtl_mismatches']} / {row['functional_mismatches']}",
            ", ".join(f"{cycles:,}" for cycles in row["rtl_cycles"]),
            f"{row['cycle_model_cycles']:,}",
            f"{row['utilization']:.1%}",
            f"{ZCU102.clock_mhz * 1e6 / row['cycle_model_cycles']:.1f}",
            ", ".join(f"{seconds:g}" for seconds in row["rtl_frame_seconds"]),
            round(row["rtl_cycles_per_second"] / 1e3),
            row["rtl_process_mib"],
            "yes" if row["equal"] else "no",
        ]
        for name, row in rows.items()
    ]
    steps = list(dict.fromkeys(step for row in rows.values() for step in row["steps"]))
    taken = [
        [f"`{name}`", *(results_table.taken(row["steps"][step]) for step in steps)]
        for name, row in rows.items()
    ]
    moved = [
        [f"`{name}`", *(f"{row['traffic'][key]:,}" for key in _TRAFFIC), f"{row['traffic']['ratio']:.3f}"]
        for name, row in rows.items()
    ]
    tables = (
        (header, exact),
        (["model and machine", *steps], taken),
        (["bytes of a frame", *_TRAFFIC.values(), "all / bound"], moved),
    )
    return "\n\n".join(results_table.markdown(*lines) for lines in tables)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    part = results_table.Part(
        name="frames", module="terrazzo.results_frames", rows=list(TARGETS), measure=measure, table=table
    )
    return results_table.run(part, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
