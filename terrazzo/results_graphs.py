"""Published models with their weights as integer graphs for two machines of 4,096 multipliers: what importing,
calibrating and quantizing takes. `results_frames` and `results_onnx` read the graphs."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from . import results, results_table
from .arch.accelerator import Accelerator
from .arch.errors import UserError
from .arch.graph import Graph
from .boards import ZCU102, fixed8_accelerator
from .examples.zoo import CATALOGUE
from .quant import frontend, quantizer

__all__ = ["MACHINES", "TARGETS", "Target", "held_out", "load", "main", "measure", "path_of", "table"]

MACHINES: dict[str, Accelerator] = {"zcu102": ZCU102.default, "fixed8": fixed8_accelerator()}
"""The board's default with lanes of four kinds, and one of Fixed-8 lanes alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A model whose rows fill the lanes of a machine."""

    model: str
    machine: str

    @property
    def accelerator(self) -> Accelerator:
        """The machine."""
        return MACHINES[self.machine]


TARGETS = {
    f"{model}-{machine}": Target(model=model, machine=machine)
    for model in ("deit-tiny", "mobilenet-v2")
    for machine in MACHINES
}


def path_of(row: str, files: Path) -> Path:
    """The file of a row's graph."""
    return files / f"{row}.graph"


def load(row: str, files: Path) -> Graph:
    """The graph that `measure` wrote. Raises UserError."""
    path = path_of(row, files)
    if not path.is_file():
        raise UserError(
            f"{path}: must be a graph, but there is none; run python -m terrazzo.results_graphs --only {row} --force"
        )
    return Graph.load(path)


def held_out(model: str, data: Path, count: int) -> np.ndarray:
    """Raw images (count, H, W, C) that the models are not calibrated on, at equal distances."""
    images = results.images(CATALOGUE[model], data)[1]
    return images.take(np.linspace(0, len(images) - 1, count).round())[:]


def measure(job: results_table.Job) -> dict:
    """Write the graph of one of `TARGETS`; a JSON object of the steps."""
    target, steps = TARGETS[job.row], results_table.Steps()
    lanes = target.accelerator.lanes
    with steps.step("weights"):
        found = results.model(target.model, job.data)
    calibration = results.images(CATALOGUE[target.model], job.data)[0]
    with steps.step("import"):
        float_graph = frontend.import_module(found.module, found.sample, target.model)

    def progress(name: str) -> None:
        job.progress(name)
        steps.begin(name)

    graph, _ = quantizer.quantize(
        float_graph,
        calibration,
        found.preprocessing,
        mixture=lanes.by_scheme,
        drain=target.accelerator.drain,
        name=job.row,
        progress=progress,
    )
    steps.end()
    graph.save(path_of(job.row, job.files))
    return {
        "model": target.model,
        "lanes": {scheme.name: count for scheme, count in lanes.by_scheme.items()},
        "calibration_images": len(calibration),
        "operators": len(graph.operators),
        "steps": steps.found,
        "command": f"python -m terrazzo.results_graphs --only {job.row} --force",
    }


def table(rows: dict[str, dict]) -> str:
    """The rows as Markdown."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row["steps"]))
    lines = []
    for name, row in rows.items():
        lanes = " ".join(f"{scheme} {count}" for scheme, count in row["lanes"].items())
        taken = [results_table.taken(row["steps"][step]) for step in names]
        lines.append([f"`{name}`", lanes, row["calibration_images"], row["operators"], *taken])
    header = ["model and machine", "lanes", "calibration images", "operators", *names]
    return results_table.markdown(header, lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    part = results_table.Part(
        name="graphs", module="terrazzo.results_graphs", rows=list(TARGETS), measure=measure, table=table
    )
    return results_table.run(part, " ".join(__doc__.split()), arguments)


if __name__ == "__main__":
    sys.exit(main())
