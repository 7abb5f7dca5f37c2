"""Vision models of Hugging Face `transformers` at full size, with random weights, from import to predicted cycles:
`python -m terrazzo.examples.full_size --docs docs/results.md`.

Every row has a process of its own and is kept; the quantized graphs are files beside the results, so that a row that is
measured again with --force takes the graph and the times of importing and quantizing from there. Remove a graph's files
to quantize again.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

import numpy as np
import torch

from .. import results_table
from ..arch import isa
from ..arch.errors import UserError
from ..arch.files import write_text
from ..arch.graph import Graph
from ..arch.isa import Engine, Opcode
from ..arch.memory import MemoryModel
from ..arch.program import Program
from ..boards import ZCU102, fit
from ..compiler import compiled
from ..quant.frontend import UnsupportedModel, import_module
from ..quant.quantizer import quantize
from ..sim import cycle, functional, reference
from .architectures import Architecture
from .table import PREPROCESSING, images

__all__ = ["MODELS", "main", "measure", "occupied", "table"]

CALIBRATION = 4
_VIT = {"num_labels": 1000}
_DEIT_S = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_labels": 1000}
_RESNET_18 = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
_B0 = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "image_size": 224}

MODELS = {
    "mobilenet-v2-1.0": Architecture("MobileNetV2ForImageClassification", 224, {"num_labels": 1000}),
    "mobilenet-v1-1.0": Architecture("MobileNetV1ForImageClassification", 224, {"num_labels": 1000}),
    "resnet-18": Architecture("ResNetForImageClassification", 224, _RESNET_18 | {"num_labels": 1000}),
    "resnet-50": Architecture("ResNetForImageClassification", 224, {"num_labels": 1000}),
    "efficientnet-b0": Architecture("EfficientNetForImageClassification", 224, _B0 | {"num_labels": 1000}),
    "deit-s": Architecture("DeiTForImageClassification", 224, _DEIT_S),
    "vit-b16": Architecture("ViTForImageClassification", 224, _VIT),
    "swin-t": Architecture("SwinForImageClassification", 224, {"num_labels": 1000}),
    "convnext-t": Architecture("ConvNextForImageClassification", 224, {"num_labels": 1000}),
    "mobilevit-s": Architecture("MobileViTForImageClassification", 256, {"num_labels": 1000}),
}
"""The library's default configuration where nothing else is said."""
ACCELERATOR = fit(ZCU102, {"instructions": 8192})
"""The default's 1,024 do not hold the larger models; block RAM for more is there."""
MEMORY = MemoryModel(latency=ZCU102.interface.latency_cycles)
_TRAFFIC = {"weights": "weights", "input": "input", "output": "output", "stored": "out", "loaded": "in"}


def measure(job: results_table.Job) -> dict:
    """One of `MODELS` on the board's default machine as far as it comes; a JSON object."""
    torch.set_num_threads(1)
    architecture, steps = MODELS[job.row], results_table.Steps()
    row: dict = {"model": architecture.model, "size": architecture.size}
    try:
        graph, made = _graph(job, architecture)
        row |= made
        job.progress("compiling")
        with steps.step("compile"):
            built = compiled(graph, ACCELERATOR)
        row |= _executed(job, graph, built.program, steps)
        row |= {
            "instructions": len(built.program.instructions),
            "traffic": built.traffic.to_dict(),
            "activations_bound": built.activations_bound,
        }
    except UnsupportedModel as error:
        row["reasons"] = [f"{finding.op}: {finding.reason}" for finding in error.findings]
    except UserError as error:
        row["reasons"] = str(error).splitlines()
    row["steps"] = row.get("steps", {}) | steps.found
    return row | {"command": f"python -m terrazzo.examples.full_size --only {job.row} --force"}


def _graph(job: results_table.Job, architecture: Architecture) -> tuple[Graph, dict]:
    """The quantized graph, and what making it took: from the files of an earlier run, if there are any."""
    path = job.files / f"full-size-{job.row}.graph"
    notes = path.with_suffix(".json")
    if path.is_file() and notes.is_file():
        return Graph.load(path), json.loads(notes.read_text())
    steps = results_table.Steps()
    job.progress("building")
    with steps.step("build"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = architecture.build()
    sample = torch.randn(
        1, 3, architecture.size, architecture.size, generator=torch.Generator().manual_seed(0)
    )
    job.progress("importing")
    with steps.step("import"):
        real = import_module(module, sample, job.row)

    def progress(name: str) -> None:
        job.progress(name)
        steps.begin(name)

    raw = images(CALIBRATION, architecture.size)
    graph, _ = quantize(
        real,
        raw,
        PREPROCESSING,
        mixture=ACCELERATOR.lanes.by_scheme,
        drain=ACCELERATOR.drain,
        name=job.row,
        progress=progress,
    )
    steps.end()
    made = {
        "parameters": sum(p.numel() for p in module.parameters()),
        "macs": sum(graph.macs(operator) for operator in graph.operators),
        "operators": len(graph.operators),
        "steps": steps.found,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    graph.save(path)
    write_text(notes, json.dumps(made))
    return graph, made


def _executed(job: results_table.Job, graph: Graph, program: Program, steps: results_table.Steps) -> dict:
    """A frame in reference and functional simulator, and the cycle model's prediction."""
    codes = reference.quantize_batch(graph, images(1, graph.tensor(graph.input).shape[0], seed=1))
    job.progress("reference")
    with steps.step("reference"):
        expected = np.asarray(reference.run(graph, codes))
    job.progress("functional simulator")
    with steps.step("functional"):
        outputs = functional.run(program, codes)
    job.progress("cycle model")
    began = time.perf_counter()
    with steps.step("cycle model"):
        timing = cycle.predict(program, MEMORY)
    job.progress(f"{timing.cycles} cycles in {time.perf_counter() - began:.0f} s")
    macs = sum(layer.macs for layer in program.layers)
    busy = occupied(program, timing)
    return {
        "equal": bool(np.array_equal(outputs.reshape(-1), expected.reshape(-1))),
        "distinct_output_codes": len(np.unique(expected)),
        "cycles": timing.cycles,
        "utilization": round(macs / (program.accelerator.multipliers * timing.cycles), 4),
        "busy": {engine.name.lower(): cycles for engine, cycles in timing.busy.items()},
        "depthwise": {
            layer.name: {"macs": layer.macs, "cycles": busy[layer.tag]}
            for layer in program.layers
            if layer.depthwise
        },
    }


def occupied(program: Program, timing: cycle.Timing) -> dict[int, int]:
    """By layer, the cycles in which the matrix engine is on its way to the end of one of its instructions: from its start,
    or the end of the one before where that is later. They add up to at most the frame's."""
    found: dict[int, int] = {}
    free = 0
    for index in np.argsort(timing.done, kind="stable"):
        instruction = isa.decode(program.instructions[index])
        if timing.start[index] < 0 or instruction.opcode != Opcode.MATRIX:
            continue
        assert instruction.engine == Engine.MATRIX
        end = int(timing.done[index])
        found[instruction.tag] = found.get(instruction.tag, 0) + end - max(int(timing.start[index]), free)
        free = end
    return found


def table(rows: dict[str, dict]) -> str:
    """What runs and how fast, what the steps take, the traffic, and depthwise convolutions, as Markdown."""
    header = (
        "model|class|pixels|GMAC|parameters, M|instructions|cycles|FPS at 150 MHz|utilization|equal|reasons"
    )
    lines, taken, moved, depthwise = [], [], [], []
    names = list(dict.fromkeys(step for row in rows.values() for step in row["steps"]))
    for name, row in rows.items():
        lines.append(
            [
                f"`{name}`",
                f"`{row['model']}`",
                row["size"],
                f"{row['macs'] / 1e9:.2f}" if "macs" in row else "",
                f"{row['parameters'] / 1e6:.1f}" if "parameters" in row else "",
                row.get("instructions", ""),
                f"{row['cycles']:,}" if "cycles" in row else "",
                f"{ZCU102.clock_mhz * 1e6 / row['cycles']:.1f}" if "cycles" in row else "",
                f"{row['utilization']:.1%}" if "cycles" in row else "",
                {True: "yes", False: "no", None: ""}[row.get("equal")],
                "; ".join(row.get("reasons", [])).replace("|", "\\|"),
            ]
        )
        cells = [results_table.taken(row["steps"][step]) if step in row["steps"] else "" for step in names]
        taken.append([f"`{name}`", *cells])
        if "traffic" in row:
            parts = [f"{row['traffic'][key] / 1e6:.2f}" for key in (*_TRAFFIC, "frame", "bound")]
            moved.append([f"`{name}`", *parts, f"{row['traffic']['ratio']:.3f}"])
        if row.get("depthwise"):
            rates = [layer["macs"] / layer["cycles"] for layer in row["depthwise"].values()]
            sums = [sum(layer[key] for layer in row["depthwise"].values()) for key in ("macs", "cycles")]
            depthwise.append(
                [
                    f"`{name}`",
                    len(rates),
                    f"{sums[0] / sums[1]:.0f}",
                    f"{min(rates):.0f}",
                    f"{max(rates):.0f}",
                    f"{sums[1] / row['cycles']:.1%}",
                ]
            )
    tables = (
        (header.split("|"), lines),
        (["model", *names], taken),
        (["MB in a frame", *_TRAFFIC.values(), "all of a frame", "bound", "all / bound"], moved),
        (
            [
                "depthwise and grouped",
                "layers",
                "useful MAC per cycle",
                "slowest layer",
                "fastest",
                "of all cycles",
            ],
            depthwise,
        ),
    )
    return "\n\n".join(results_table.markdown(*each) for each in tables)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    part = results_table.Part(
        name="full-size",
        module="terrazzo.examples.full_size",
        rows=list(MODELS),
        measure=measure,
        table=table,
        data=False,
    )
    return results_table.run(part, " ".join(__doc__.split()), arguments)


if __name__ == "__main__":
    sys.exit(main())
