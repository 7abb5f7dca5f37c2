"""Benchmarks of the digit models on the demo's accelerator, and of the reference at the size of DeiT-Tiny against
torch in float32: `make bench` writes them as JSON.

Times are of this machine at this moment; compare figures of one run with each other.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np

from . import api, synthetic
from .arch.files import write_text
from .arch.memory import MemoryModel
from .boards import demo_accelerator
from .compiler import compile
from .examples.zoo.deit import deit_tiny
from .hw import top
from .quant import data, frontend
from .quant.forward import forward, torch_threads
from .sim import cycle, functional, reference
from .sim.rtl import RtlSimulator

__all__ = ["main", "run"]

MEMORY = MemoryModel(latency=60, interval=1)
REFERENCE_IMAGES, FUNCTIONAL_IMAGES, RTL_IMAGES, CALIBRATION_IMAGES = 256, 16, 32, 128


def _timed(function: Callable):
    """(result, seconds)."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def run(progress: api.Progress = api.silent) -> dict:
    """All figures: seconds, frames per second, cycles per second, utilization."""
    machine = demo_accelerator()
    progress("Verilog and its simulation model")
    verilog, verilog_s = _timed(lambda: top.verilog(machine))
    simulator, build_s = _timed(lambda: RtlSimulator(machine, verilog))
    figures: dict = {
        "machine": {
            "python": platform.python_version(),
            "processor": platform.processor() or platform.machine(),
        },
        "accelerator": {"multipliers": machine.multipliers, "hash": f"{machine.hash:016x}"},
        "verilog_seconds_or_cached": verilog_s,
        "rtl_build_seconds_or_cached": build_s,
        "models": {},
    }
    for name in api.DIGITS:
        progress(name)
        figures["models"][name] = _model(api.source(name), machine, simulator)
    progress("deit-tiny shapes: reference against torch float32")
    figures["deit_tiny_shapes"] = {
        f"{threads} threads": deit_tiny_shapes(threads)
        for threads in sorted({1, numba.config.NUMBA_NUM_THREADS})
    }
    figures["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures


def deit_tiny_shapes(threads: int, images: int = 8, rounds: int = 3) -> dict:
    """Images per second of `sim.reference` on a graph of DeiT-Tiny's shapes and of torch's float32 model, on the same
    number of threads, in turn; the best of `rounds`. Weights are random."""
    graph, model = synthetic.deit(), deit_tiny().eval()
    random = np.random.default_rng(0)
    codes = random.integers(-128, 128, (images, *graph.tensor(graph.input).shape)).astype(np.int8)
    batch = random.standard_normal((images, 3, 224, 224), np.float32)
    float_s, reference_s = [], []
    with torch_threads(threads):
        for _ in range(rounds + 1):  # the first warms up
            float_s.append(_timed(lambda: forward(model, batch))[1])
            reference_s.append(_timed(lambda: reference.run(graph, codes, threads=threads))[1])
    fastest_float, fastest = min(float_s[1:]), min(reference_s[1:])
    return {
        "images_per_second": {"torch_float32": images / fastest_float, "reference": images / fastest},
        "reference_over_torch": fastest_float / fastest,
    }


def _model(source, machine, simulator: RtlSimulator) -> dict:
    float_graph, import_s = _timed(lambda: frontend.import_module(source.module, source.sample, source.name))
    calibration = data.digits("train")[0][:CALIBRATION_IMAGES]
    quantized, quantize_s = _timed(
        lambda: api.quantize(source, calibration, machine, float_graph=float_graph)
    )
    graph = quantized.graph
    program, compile_s = _timed(lambda: compile(graph, machine))
    raw = data.digits("test")[0]
    codes = reference.quantize_batch(graph, raw[:REFERENCE_IMAGES])
    reference.run(graph, codes[:2])
    _, float_s = _timed(lambda: float_graph.classify(raw[:REFERENCE_IMAGES], source.preprocessing))
    _, reference_s = _timed(lambda: reference.run(graph, codes))
    _, functional_s = _timed(lambda: functional.run(program, codes[:FUNCTIONAL_IMAGES]))
    cycle.predict(program, MEMORY)  # the first call compiles
    timing, cycle_s = _timed(lambda: cycle.predict(program, MEMORY))
    result, rtl_s = _timed(lambda: simulator.run(program, codes[:RTL_IMAGES], MEMORY))
    macs = sum(layer.macs for layer in program.layers)
    return {
        "seconds": {"import": import_s, "quantize": quantize_s, "compile": compile_s},
        "frames_per_second": {
            "float": REFERENCE_IMAGES / float_s,
            "reference": REFERENCE_IMAGES / reference_s,
            "functional": FUNCTIONAL_IMAGES / functional_s,
            "cycle": 1 / cycle_s,
            "rtl": RTL_IMAGES / rtl_s,
        },
        "cycle_model_cycles_per_second": timing.cycles / cycle_s,
        "rtl_cycles_per_second": result.total_cycles / rtl_s,
        "rtl_macs_per_second": macs * RTL_IMAGES / rtl_s,
        "cycles_per_frame": int(result.cycles[0]),
        "predicted_cycles_per_frame": timing.cycles,
        "instructions": len(program.instructions),
        "utilization": api.utilization(program, int(result.cycles[0])),
        "layers": api.layer_rows(program, result.spans[0]),
        "engines": result.counters[0],
    }


def main() -> None:
    """Write the figures to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "terrazzo-bench.json")
    options = parser.parse_args()
    figures = run(lambda text: print(f"  {text}", flush=True))
    write_text(options.out, json.dumps(figures, indent=2) + "\n")
    for name, model in figures["models"].items():
        rates = ", ".join(f"{level} {rate:.0f}/s" for level, rate in model["frames_per_second"].items())
        print(f"{name}: {rates}; RTL {model['rtl_cycles_per_second'] / 1e3:.0f} kcycles/s")
    for threads, figure in figures["deit_tiny_shapes"].items():
        rates = ", ".join(f"{name} {rate:.1f}/s" for name, rate in figure["images_per_second"].items())
        print(f"DeiT-Tiny shapes, {threads}: {rates}")
    print(options.out)


if __name__ == "__main__":
    main()
