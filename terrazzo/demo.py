"""The demo: the whole flow on the digit models, each promise measured and checked."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from . import api
from .arch.files import write_text
from .arch.graph import Graph
from .arch.memory import MemoryModel
from .arch.program import Program
from .arch.schemes import Scheme
from .boards import BOARDS, demo_accelerator
from .boards.synthesis import count as count_resources
from .boards.synthesis import verilog as board_verilog
from .compiler import compile
from .compiler.needed import needed
from .hw import bundle, top
from .quant import data, frontend
from .sim import compare, cycle, reference

__all__ = ["Result", "run"]

MODELS = ("digits-vit", "digits-cnn")
RTL_IMAGES = 16
ONNX_IMAGES = 64
CALIBRATION_IMAGES = 256
MEMORY = MemoryModel(latency=60, interval=1)
BOARD = "zcu102"
LIMITS = {"fixed8": 1.0, "mixed": 2.0}
"""Points of top-1 that the integer model may lose against float."""
UTILIZATION = {"digits-vit": 0.50, "digits-cnn": 0.40}


@dataclasses.dataclass
class Result:
    """What the demo found."""

    summary: dict
    broken: list[str]
    """Promises that were not kept."""

    @property
    def passed(self) -> bool:
        """Every promise was kept."""
        return not self.broken

    def tables(self) -> dict[str, list[dict]]:
        """Tables for a person."""
        accuracy, machine = [], []
        for name, model in self.summary["models"].items():
            for rows, entry in model["rows"].items():
                accuracy.append(
                    {
                        "model": name,
                        "rows": rows,
                        "float top-1": f"{entry['float_top1']:.2f} %",
                        "integer top-1": f"{entry['integer_top1']:.2f} %",
                        "agreement": f"{entry['agreement']:.2f} %",
                        "images": entry["images"],
                        "4-bit rows": f"{entry['narrow_rows']:.0%}",
                    }
                )
            machine.append(
                {
                    "model": name,
                    "images": model["rtl_images"],
                    "wrong": model["rtl_mismatches"],
                    "cycles": model["rtl_cycles"],
                    "predicted": model["cycle_model_cycles"],
                    "MACs used": f"{model['mac_utilization']:.1%}",
                    "no depthwise": f"{model['mac_utilization_without_depthwise']:.1%}",
                    "FPS": f"{model['fps']:.0f}",
                }
            )
        return {
            "Accuracy on all held-out digits": accuracy,
            f"Verilog, mixed rows: reference, cycle model, FPS at {BOARDS[BOARD].clock_mhz} MHz": machine,
            f"Synthesis of the demo's array, {BOARD}": self.summary["resources"],
        }

    def messages(self) -> list[str]:
        """Closing lines."""
        lines = [f"missed: {text}" for text in self.broken]
        confirmed = [m["onnx"] for m in self.summary["models"].values() if m.get("onnx", {}).get("images")]
        if confirmed:
            images, wrong = (sum(o[k] for o in confirmed) for k in ("images", "mismatches"))
            lines.append(
                f"onnxruntime executes the exported integer graphs: {wrong} of {images} images differ"
            )
        return [*lines, f"{self.summary['seconds']:.0f} s; results in {self.summary['directory']}"]


def run(out: Path, progress: api.Progress = api.silent) -> Result:
    """Run everything into the folder `out` (replaced) and write `out`/summary.json."""
    start = time.monotonic()
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    machine = demo_accelerator()
    summary: dict = {"models": {}, "accelerator": machine.to_dict(), "multipliers": machine.multipliers}
    broken: list[str] = []
    progress("generating Verilog")
    verilog = top.verilog(machine)
    with ThreadPoolExecutor(max_workers=1) as beside:
        counted = beside.submit(
            count_resources, board_verilog(machine, BOARDS[BOARD]), top.MODULE, BOARDS[BOARD]
        )
        for name in MODELS:
            entry, problems = _model(name, machine, verilog, out / name, progress)
            summary["models"][name] = entry
            broken += [f"{name}: {problem}" for problem in problems]
        progress("synthesis with Yosys: each distinct module once, cached")
        summary["resources"] = api.resource_rows(counted.result(), BOARDS[BOARD])
    summary |= {"broken": broken, "directory": str(out), "seconds": time.monotonic() - start}
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return Result(summary, broken)


def _model(name, machine, verilog, out: Path, progress) -> tuple[dict, list[str]]:
    source = api.source(name)
    broken: list[str] = []
    if findings := api.check(source):
        return {}, [str(finding) for finding in findings]
    images, labels = data.digits("test")
    calibration = data.digits("train")[0][:CALIBRATION_IMAGES]
    progress(f"{name}: float accuracy on {len(images)} images")
    float_graph = frontend.import_module(source.module, source.sample, name)
    float_classes = float_graph.classify(images, source.preprocessing)
    entry: dict = {"rows": {}}
    for rows in LIMITS:
        quantized = api.quantize(
            source, calibration, machine, rows=rows, float_graph=float_graph, progress=progress
        )
        graph = quantized.graph
        graph.save(out / f"{rows}.graph")
        write_text(out / f"{rows}.report.json", quantized.report.to_json() + "\n")
        progress(f"{name}: {rows} integer accuracy on {len(images)} images")
        schemes = quantized.report.schemes
        narrow = 1 - schemes.get(Scheme.FIXED8.name, 0) / sum(schemes.values())
        accuracy = _accuracy(graph, images, labels, float_classes) | {
            "narrow_rows": narrow,
            "schemes": schemes,
        }
        entry["rows"][rows] = accuracy
        lost = accuracy["float_top1"] - accuracy["integer_top1"]
        if lost > LIMITS[rows]:
            broken.append(f"{rows} rows lose {lost:.2f} points, {LIMITS[rows]} allowed")
    if narrow < 0.4 or not {Scheme.FIXED4.name, Scheme.POT4.name} <= set(schemes):
        broken.append(f"mixed rows must be 40 % of 4 bits with Fixed-4 and PoT-4, not {schemes}")
    api.export_onnx(graph, out / "mixed.onnx")
    entry["onnx"] = _confirmed(graph, out / "mixed.onnx", images[:ONNX_IMAGES])
    if entry["onnx"].get("mismatches"):
        broken.append(f"onnxruntime disagrees with the reference on {entry['onnx']['mismatches']} images")
    progress(f"{name}: compiling")
    program = compile(graph, machine, graph.name)
    program.save(out / "mixed.program")
    api.write_listing(program, out / "mixed.listing")
    simulated, problems = _simulated(graph, program, images[:RTL_IMAGES], verilog, out, progress)
    entry |= {k: v for k, v in entry["rows"]["mixed"].items() if k != "schemes"} | simulated
    if entry["mac_utilization"] < UTILIZATION[name]:
        broken.append(f"utilization {entry['mac_utilization']:.1%}, {UTILIZATION[name]:.0%} demanded")
    return entry, broken + problems


def _confirmed(graph: Graph, path: Path, images: np.ndarray) -> dict:
    """Images on which onnxruntime, where it is installed, differs from the reference."""
    if importlib.util.find_spec("onnxruntime") is None:
        return {"images": 0, "reason": "onnxruntime is not installed"}
    import onnxruntime

    codes = reference.quantize_batch(graph, images)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: codes})[0].reshape(len(codes), -1)
    differ = (found != reference.run(graph, codes).reshape(len(codes), -1)).any(axis=1)
    return {"images": len(codes), "mismatches": int(differ.sum())}


def _accuracy(graph: Graph, images: np.ndarray, labels: np.ndarray, float_classes: np.ndarray) -> dict:
    outputs = reference.run(graph, reference.quantize_batch(graph, images))
    classes = outputs.reshape(len(images), -1).argmax(axis=1)
    return {
        "float_top1": float(np.mean(float_classes == labels) * 100),
        "integer_top1": float(np.mean(classes == labels) * 100),
        "agreement": float(np.mean(classes == float_classes) * 100),
        "images": len(images),
    }


def _simulated(
    graph: Graph, program: Program, images, verilog: str, out: Path, progress
) -> tuple[dict, list[str]]:
    """All simulators on `images`; the bundle of Verilog and testbench."""
    codes = reference.quantize_batch(graph, images)
    result = compare.compare(
        graph, program, codes, MEMORY, computed=needed(graph), verilog=verilog, progress=progress
    )
    expected = reference.run(graph, codes[:1])
    outputs = expected.reshape(1, program.output.positions, program.output.channels)
    bundle.write_bundle(out / "bundle", program.accelerator, program, codes[:1], outputs, verilog)
    cycles = result.rtl_cycles
    depthwise = [tag for tag in result.rtl_layers if program.layer(tag).depthwise]
    spent = sum(result.rtl_layers[tag][1] - result.rtl_layers[tag][0] + 1 for tag in depthwise)
    macs = sum(layer.macs for layer in program.layers)
    macs_depthwise = sum(layer.macs for layer in program.layers if layer.depthwise)
    peak = program.accelerator.multipliers
    entry = {
        "rtl_images": len(codes),
        "rtl_mismatches": result.rtl_mismatches,
        "rtl_cycles": cycles,
        "setup_cycles": cycle.predict(program, MEMORY, program.setup_entry).cycles,
        "cycle_model_cycles": result.predicted_cycles,
        "mac_utilization": macs / (peak * cycles),
        "mac_utilization_without_depthwise": (macs - macs_depthwise) / (peak * (cycles - spent)),
        "depthwise": [row for row in api.layer_rows(program, result.rtl_layers) if "depthwise" in row["op"]],
        "layers": api.layer_rows(program, result.rtl_layers),
        "fps": BOARDS[BOARD].clock_mhz * 1e6 / cycles,
        "verilog": str(out / "bundle" / f"{top.MODULE}.v"),
        "program": str(out / "mixed.program"),
    }
    return entry, [] if result.equal else result.messages()
