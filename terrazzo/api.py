"""One Python call for every verb of the command line.

Calls take and return objects of the folders (graphs, programs, accelerators); files are named by the caller and
written whole. Long calls take `progress(text)`. A user's mistake raises `terrazzo.arch.errors.UserError`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from .arch.accelerator import Accelerator
from .arch.errors import UserError
from .arch.files import FileError, write_text
from .arch.graph import Graph, Preprocessing
from .arch.memory import MemoryModel
from .arch.program import Program
from .arch.schemes import Scheme
from .boards import BOARDS, Board, bandwidth, demo_accelerator, fit, require_interface, require_lanes
from .boards.paths import ModulePaths
from .boards.paths import paths as module_paths
from .boards.routing import require_clock, route
from .boards.synthesis import FLOWS, Resources
from .boards.synthesis import count as count_resources
from .boards.synthesis import verilog as board_verilog
from .compiler import Judge, compile, compiled, listing
from .compiler.needed import needed
from .examples.digits import models as digits_models
from .hw import bundle, top
from .quant import data, frontend, onnx_export, onnx_import, parallel, quantizer
from .quant import finetune as training
from .quant import source as sources
from .quant.finetune import Settings
from .quant.floatgraph import FloatGraph
from .sim import compare as comparison
from .sim import cycle, functional, reference
from .sim.rtl import RtlSimulator

__all__ = [
    "Graph",
    "MemoryModel",
    "Program",
    "Settings",
    "board_named",
    "boards",
    "calibration_images",
    "check",
    "compare",
    "compile",
    "compiled",
    "export_onnx",
    "finetune",
    "frame_cycles",
    "imported_graph",
    "labelled_images",
    "make_accelerator",
    "parse_requests",
    "quantize",
    "rtl",
    "sim",
    "source",
    "training_images",
    "write_listing",
]

Progress = Callable[[str], None]
CALIBRATION = 256
"""Images of a training set that `finetune` calibrates on."""
DIGITS = {"digits-vit": "vit", "digits-cnn": "cnn"}


def silent(text: str) -> None:
    """The progress callback that shows nothing."""


def make_accelerator(
    board: str | None = None, path: str | Path | None = None, requests: Iterable[str] = ()
) -> Accelerator:
    """An accelerator: of a JSON file, fitted to a board with requests like "columns=8", or the demo's small one."""
    requested = parse_requests(requests)
    if path is not None:
        try:
            values = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise FileError(f"{path}: accelerator file must be readable JSON: {error}") from None
        accelerator = Accelerator.from_dict(values)
        if board is not None:
            require_interface(accelerator, board_named(board))
            require_lanes(accelerator, board_named(board))
        return accelerator
    if board is not None:
        return fit(board_named(board), requested)
    values = demo_accelerator().to_dict()
    lanes = {**values["lanes"], **requested.pop("lanes", {})}
    return Accelerator.from_dict({**values, **requested, "lanes": lanes})


def frame_cycles(board: str | None = None) -> Judge:
    """Predicts the cycles of a program's frame with the memory of a board: a judge for `compiled`."""
    memory = MemoryModel() if board is None else board_named(board).interface.memory
    return lambda program: cycle.predict(program, memory).cycles


def parse_requests(requests: Iterable[str]) -> dict:
    """Parameters of `Accelerator` from "name=number"; lanes in a mapping of their own. Raises UserError."""
    requested: dict = {}
    for request in requests:
        name, _, value = request.partition("=")
        if not value.isdecimal():
            raise UserError(f"request must be parameter=number, not {request!r}")
        target = requested
        if name.startswith("lanes."):
            target, name = requested.setdefault("lanes", {}), name.removeprefix("lanes.")
        target[name] = int(value)
    return requested


def parse_mixture(text: str) -> dict[Scheme, int]:
    """Lanes of each scheme from "fixed8=1,fixed4=19". Raises UserError."""
    found: dict[Scheme, int] = {}
    names = {scheme.name.lower(): scheme for scheme in Scheme}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in names or not value.isdecimal() or int(value) == 0:
            raise UserError(
                f"mix must be scheme=parts with commas, schemes of {', '.join(names)} and parts from 1 on, not {text!r}; "
                "for example fixed8=1,fixed4=3"
            )
        found[names[name]] = int(value)
    if Scheme.FIXED8 not in found:
        raise UserError(
            f"mix must have fixed8 lanes, which run attention and incomplete blocks, not {text!r}; the nearest is "
            f"fixed8=1,{text}"
        )
    return dict(sorted(found.items()))


def board_named(name: str) -> Board:
    """Raises UserError."""
    if name not in BOARDS:
        raise UserError(f"board must be one of {', '.join(BOARDS)}, not {name!r}")
    return BOARDS[name]


def source(
    model: str,
    input: str | None = None,
    weights: str | Path | None = None,
    *,
    mean: str | None = None,
    std: str | None = None,
) -> sources.Source:
    """A model by name (digits-vit, digits-cnn), as an ONNX file, or by file.py:function with its input as "C,H,W".

    `mean` and `std` of pixels 0..1 are numbers with commas, one or one per channel. Left out, they are ImageNet's (grey:
    0.5), and for ONNX 0 and 1.
    """
    if model in DIGITS:
        kind = DIGITS[model]
        return sources.load(
            lambda: digits_models.build(kind),
            name=model,
            shape=digits_models.SHAPE,
            preprocessing=Preprocessing(
                scale=digits_models.SCALE,
                mean=(digits_models.MEAN,),
                std=(digits_models.STD,),
                raw_max=digits_models.RAW_MAX,
            ),
            weights=weights or Path(digits_models.__file__).with_name(f"{kind}.safetensors"),
        )
    if model.endswith(".onnx"):
        if weights is not None:
            raise UserError(f"model {model}: weights must be in the ONNX file itself, not in {weights}")
        loaded = onnx_import.load(model, shape=None if input is None else _shape(model, input))
        pixels = _pixels(model, loaded.shape[2], mean or "0", std or "1")
        return dataclasses.replace(loaded, preprocessing=pixels)
    shape = _shape(model, input)
    channels = shape[2]
    grey = channels == 1
    preprocessing = _pixels(
        model,
        channels,
        mean or ("0.5" if grey else "0.485,0.456,0.406"),
        std or ("0.5" if grey else "0.229,0.224,0.225"),
    )
    name = Path(model.partition(":")[0]).name.removesuffix(".py")
    return sources.load(
        sources.factory(model), name=name, shape=shape, preprocessing=preprocessing, weights=weights
    )


def _shape(model: str, input: str | None) -> tuple[int, int, int]:
    """(H, W, C) of "C,H,W"."""
    try:
        channels, height, width = (int(part) for part in (input or "").split(","))
    except ValueError:
        raise UserError(f'input must be "C,H,W" for model {model}, not {input!r}') from None
    return height, width, channels


def _pixels(model: str, channels: int, mean: str, std: str) -> Preprocessing:
    """Pixels 0..255 to 0..1, then mean and std."""
    numbers = []
    for name, text in (("mean", mean), ("std", std)):
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError:
            raise UserError(f"{name} must be numbers with commas for model {model}, not {text!r}") from None
        if len(values) not in (1, channels) or (name == "std" and 0 in values):
            raise UserError(
                f"{name} must be one number, or {channels}, and no std 0 for model {model}, not {text!r}"
            )
        numbers.append(values * channels if len(values) == 1 else values)
    return Preprocessing(scale=1 / 255, mean=numbers[0], std=numbers[1])


def check(model: sources.Source) -> list[frontend.Finding]:
    """Every operator of a model that is not supported; empty where all are."""
    if isinstance(model.module, onnx_import.OnnxModule):
        return onnx_import.check(model)
    return frontend.check(model.module, model.sample)


def calibration_images(
    model: sources.Source, directory: str | Path | None = None, count: int = 256
) -> np.ndarray | data.Images:
    """Raw calibration images: of a folder or .npz file (`data.open_images`), or training digits for the digit models.

    Of more than `count` images those at equal distances are taken. A model that comes quantized needs none.
    """
    if onnx_import.is_quantized(model):
        return np.zeros((0, *model.shape))
    if directory is not None:
        images = data.open_images(
            directory, model.shape, raw_max=model.preprocessing.raw_max, resize=model.preprocessing.resize
        )
        return images if len(images) <= count else images.split(count)[0]
    if model.shape != digits_models.SHAPE:
        raise UserError(f"model {model.name}: needs calibration images; name a folder with --images")
    return data.digits("train")[0][:count]


def imported_graph(model: sources.Source) -> FloatGraph:
    """The float graph of a model. Raises UserError."""
    if isinstance(model.module, onnx_import.OnnxModule):
        return onnx_import.import_onnx(model)
    return frontend.import_module(model.module, model.sample, model.name)


@dataclasses.dataclass(frozen=True)
class Quantized:
    """What `quantize` made."""

    graph: Graph
    report: quantizer.Report


def quantize(
    model: sources.Source,
    images: np.ndarray | data.Images,
    target: Accelerator,
    *,
    rows: str = "mixed",
    activation_bits: int = 8,
    functions: str = "exact",
    float_graph: FloatGraph | None = None,
    progress: Progress = silent,
) -> Quantized:
    """Import (unless `float_graph` is the imported model), calibrate and quantize a model.

    Rows "mixed" follow the lane mixture of `target`; "fixed8" are all Fixed-8; else a block of them, such as
    "fixed8=4,fixed4=60", which `terrazzo fit` prints. `functions` are "exact", or those of "i-vit" or
    "heatvit" (`quant.functions`). An ONNX model that comes quantized keeps its codes, scales and bits: images and
    `activation_bits` are not used, and rows take narrow lanes where these hold the codes.
    """
    mixture, apart = _rows(rows, target)
    if float_graph is None:
        progress(f"{model.name}: importing")
        if onnx_import.is_quantized(model):
            if functions != "exact":
                raise UserError(
                    f"model {model.name}: functions must be exact where it comes quantized, not {functions}"
                )
            return Quantized(*onnx_import.integer(model, mixture=mixture, drain=apart))
        float_graph = imported_graph(model)
    progress(f"{model.name}: quantizing, {rows} rows")
    graph, report = quantizer.quantize(
        float_graph,
        images,
        model.preprocessing,
        mixture=mixture,
        drain=apart,
        activation_bits=activation_bits,
        functions=functions,
        name=f"{model.name}-{rows}" + ("" if functions == "exact" else f"-{functions}"),
        execute=functools.partial(reference.run, keep=True),
    )
    return Quantized(graph, report)


def _rows(rows: str, target: Accelerator) -> tuple[dict[Scheme, int], int]:
    """The mixture of a block of rows, and how many rows apart it holds by itself: `quantizer.quantize`'s."""
    if rows == "mixed":
        return target.lanes.by_scheme, target.drain
    if rows == "fixed8":
        return {Scheme.FIXED8: target.lanes.fixed8}, target.drain
    if "=" not in rows:
        raise UserError(f"rows must be mixed, fixed8 or a block such as fixed8=4,fixed4=60, not {rows!r}")
    mixture = parse_mixture(rows)
    return mixture, math.gcd(*mixture.values(), target.drain)


def training_images(model: sources.Source, path: str | Path | None = None) -> data.Images:
    """Raw images to train on: of a folder or .npz file, or training digits for the digit models."""
    if path is not None:
        return data.open_images(
            path, model.shape, raw_max=model.preprocessing.raw_max, resize=model.preprocessing.resize
        )
    if model.shape != digits_models.SHAPE:
        raise UserError(f"model {model.name}: needs images to train on; name a folder with --images")
    return data.open_images(data.digits("train")[0], model.shape, raw_max=data.DIGITS_RAW_MAX)


def finetune(
    model: sources.Source,
    images: data.Images | np.ndarray,
    target: Accelerator,
    settings: Settings,
    *,
    start: Graph | None = None,
    rows: str = "mixed",
    activation_bits: int = 8,
    functions: str = "exact",
    checkpoint: str | Path | None = None,
    device: str | None = None,
    progress: Progress = silent,
    step: training.Step | None = None,
) -> training.Finetuned:
    """Train the integer graph `start` of a model, by default what `quantize` makes of it, through its own operators.

    `images` are raw and need no labels: the float model is the teacher. See `quant.finetune`. Under torchrun the
    processes train together, and every one returns the same graph.
    """
    if onnx_import.is_quantized(model):
        raise UserError(
            f"model {model.name}: the teacher must be a float model, but this one comes quantized; quantize it with "
            "terrazzo quantize, and give that graph as --start with the float model"
        )
    place = parallel.pick_device(device)
    progress(f"{model.name}: importing")
    teacher = imported_graph(model)
    images = data.open_images(images, model.shape, raw_max=model.preprocessing.raw_max)
    with parallel.joined(place):
        if start is None and parallel.rank() == 0:
            shown = images.split(CALIBRATION)[0] if len(images) > CALIBRATION else images
            quantized = quantize(
                model,
                shown,
                target,
                rows=rows,
                activation_bits=activation_bits,
                functions=functions,
                float_graph=teacher,
                progress=progress,
            )
            start = quantized.graph
        progress(f"{model.name}: training")
        return training.finetune(
            start, teacher, images, settings, device=str(place), checkpoint=checkpoint, step=step
        )


def labelled_images(model: sources.Source, path: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Raw images and their labels: of a folder or .npz file, or held-out digits for the digit models."""
    if path is None and model.shape == digits_models.SHAPE:
        return data.digits("test")
    if path is None:
        raise UserError(f"model {model.name}: needs labelled images; name a folder with --test")
    how = model.preprocessing
    images = data.open_images(path, model.shape, raw_max=how.raw_max, resize=how.resize)
    if images.labels is None:
        raise UserError(f"{path}: must have labels (labels.csv or a folder per class) to measure accuracy")
    return images[:], images.labels


def export_onnx(graph: Graph, path: str | Path) -> Path:
    """Write a graph as ONNX of integer operators."""
    return onnx_export.export(graph, path)


def write_listing(program: Program, path: str | Path) -> Path:
    """Write the disassembly of a program."""
    return write_text(path, listing.listing(program))


def _images(
    graph: Graph, directory: str | Path | None, count: int
) -> tuple[np.ndarray, list[str], np.ndarray | None]:
    """Raw images, their names, and labels where they are known."""
    shape = graph.tensor(graph.input).shape
    if directory is not None:
        how = graph.preprocessing
        images = data.open_images(directory, shape, raw_max=how.raw_max, resize=how.resize)
        images = images.take(range(min(count, len(images))))
        return images[:], images.names, images.labels
    if shape != digits_models.SHAPE:
        raise UserError(f"graph {graph.name}: needs images of shape {shape}; name a folder with --images")
    images, labels = data.digits("test")
    return images[:count], [f"digit {i}" for i in range(min(count, len(images)))], labels[:count]


def rtl(
    output: str | Path,
    *,
    board: str | None = None,
    accelerator: str | Path | None = None,
    requests: Iterable[str] = (),
    program: str | Path | None = None,
    graph: str | Path | None = None,
    images: str | Path | None = None,
    synthesis: bool = True,
    paths: bool = False,
    clock_mhz: float | None = None,
    seed: int = 1,
    progress: Progress = silent,
) -> dict:
    """Write a bundle to the folder `output` (Verilog and its surroundings), count resources against the board, and with
    `paths` list the longest path of every module (`boards.paths`); with `clock_mhz` place and route it (`boards.routing`) from a `seed`, and
    write the longest paths between modules to `clock_paths.txt`.

    With a program and its graph the bundle has a self-checking testbench on an image; the accelerator is then the
    program's. Without them the bundle is the Verilog, its file list and the register map. With a `board` the Verilog has
    its family's primitives, and the bundle their behaviour for simulations.
    """
    output = Path(output)
    if (program is None) != (graph is None):
        raise UserError("program and graph must be given together: the graph tells the expected output")
    loaded = None if program is None else Program.load(program)
    machine = loaded.accelerator if loaded else make_accelerator(board, accelerator, requests)
    if loaded and (board or accelerator or requests):
        loaded.require(make_accelerator(board, accelerator, requests))
    progress("generating Verilog")
    target = board_named(board or "zcu102")
    text = board_verilog(machine, target) if board else top.verilog(machine)
    if clock_mhz is not None:
        require_clock(target, clock_mhz)
    models = {name: model for name, model in FLOWS[target.flow].models.items() if f"{name} " in text}
    if loaded is None:
        bundle.write_verilog(output, machine, text, models)
    else:
        integer = Graph.load(graph)
        raw, _, _ = _images(integer, images, 1)
        codes = reference.quantize_batch(integer, raw)
        expected = reference.run(integer, codes)
        bundle.write_bundle(output, machine, loaded, codes, _flat(loaded, expected), text, models)
    rows, longest, routed = [], [], []
    if synthesis or paths:
        progress(f"synthesis for {target.name}: each distinct module once, cached")
        mapped = board_verilog(machine, target)
        rows = resource_rows(count_resources(mapped, top.MODULE, target, progress), target)
        if paths:
            longest = path_rows(module_paths(mapped, top.MODULE, target))
    if clock_mhz is not None:
        progress(f"place and route for {target.name} at {clock_mhz:g} MHz")
        mapped = board_verilog(machine, target)
        listing = output / "clock_paths.txt"
        result = route(mapped, top.MODULE, target, clock_mhz, seed, progress=progress, listing=listing)
        routed = [dataclasses.asdict(result)]
    return {
        "verilog": str(output / f"{top.MODULE}.v"),
        "accelerator": machine.to_dict(),
        "hash": f"{machine.hash:016x}",
        "multipliers": machine.multipliers,
        "resources": rows,
        "paths": longest,
        "clock": routed,
    }


def path_rows(modules: Iterable[ModulePaths]) -> list[dict]:
    """Of every module the longest path in its own logic, and those across its borders with modules below it."""
    return [
        {
            "module": paths.module.removeprefix(f"{top.MODULE}_"),
            "instances": paths.instances,
            "levels": paths.own.levels,
            "from": paths.own.start,
            "to": paths.own.end,
            "across": paths.whole.levels,
            "first": paths.whole.start,
            "last": paths.whole.end,
            "through": paths.through.levels if paths.through else 0,
            "passes": paths.passes,
        }
        for paths in modules
    ]


def resource_rows(resources: Resources, board: Board) -> list[dict]:
    """Counts beside the board's budget."""
    rows = []
    for field in dataclasses.fields(board.budget):
        used, budget = getattr(resources, field.name), getattr(board.budget, field.name)
        rows.append({"resource": field.name, "used": used, "budget": budget, "share": f"{used / budget:.1%}"})
    return rows


def _flat(program: Program, outputs: np.ndarray) -> np.ndarray:
    """(N, ...) output codes as (N, positions, channels)."""
    return outputs.reshape(len(outputs), program.output.positions, program.output.channels)


def sim(
    graph: Graph,
    program: Program,
    images: str | Path | None = None,
    *,
    level: str = "rtl",
    count: int = 16,
    board: str = "zcu102",
    memory: MemoryModel | None = None,
    progress: Progress = silent,
) -> dict:
    """Classify images: predictions, cycles and FPS of a frame at the board's clock, and a row per layer.

    Cycles are those of the first image; where images take different ones, each prediction has its own. `level` is reference, functional (no cycles), cycle (predicted cycles) or rtl (cycles of the Verilog).
    """
    levels = ("reference", "functional", "cycle", "rtl")
    if level not in levels:
        raise UserError(f"level must be one of {', '.join(levels)}, not {level!r}")
    memory = memory or MemoryModel()
    target = board_named(board)
    clock_mhz = target.clock_mhz
    raw, names, labels = _images(graph, images, count)
    codes = reference.quantize_batch(graph, raw)
    progress(f"{level}: {len(codes)} images")
    if level == "reference":
        outputs = reference.run(graph, codes)
    elif level == "rtl":
        simulator = RtlSimulator(program.accelerator)
        result = simulator.run(
            program, codes, memory, progress=lambda n: progress(f"rtl: {n} of {len(codes)} images")
        )
        outputs, spans, cycles = result.outputs, result.spans[0], [int(c) for c in result.cycles]
    else:
        frames = list(functional.frames(program, codes))
        outputs = np.stack([frame.outputs for frame in frames])
    if level == "cycle":
        timings = cycle.frames(program, memory, [frame.written for frame in frames])
        spans = {tag: (s.start, s.done) for tag, s in timings[0].layers.items()}
        cycles = [timing.cycles for timing in timings]
    classes = outputs.reshape(len(codes), -1).argmax(axis=1)
    predictions = [
        {"image": name, "class": graph.labels[c] if graph.labels else int(c)}
        | ({} if labels is None else {"label": int(labels[i])})
        for i, (name, c) in enumerate(zip(names, classes, strict=True))
    ]
    result = {"level": level, "predictions": predictions, "layers": [], "frame": [], "memory": []}
    if level in ("cycle", "rtl"):
        if len(set(cycles)) > 1:
            for prediction, count in zip(predictions, cycles, strict=True):
                prediction["cycles"] = count
        result["layers"] = layer_rows(program, spans)
        result["frame"] = [
            {
                "cycles": cycles[0],
                "clock MHz": clock_mhz,
                "latency ms": cycles[0] / clock_mhz / 1e3,
                "FPS": clock_mhz * 1e6 / cycles[0],
                "utilization": f"{utilization(program, cycles[0]):.1%}",
            }
        ]
        result["memory"] = bandwidth.rows(program, cycles[0], target)
    return result


def utilization(program: Program, cycles: int) -> float:
    """Useful multiply-accumulates of a frame / (products per cycle x cycles)."""
    return sum(layer.macs for layer in program.layers) / (program.accelerator.multipliers * cycles)


def layer_rows(program: Program, spans: dict[int, tuple[int, int]]) -> list[dict]:
    """A row per layer: first start, last end, useful MACs and their share of the peak in that span.

    Spans of neighbouring layers overlap, so their utilizations do not add up to the frame's.
    """
    rows = []
    for layer in program.layers:
        if layer.tag in spans:
            start, done = spans[layer.tag]
            share = layer.macs / (program.accelerator.multipliers * (done - start + 1))
            kind = f"{layer.op} (depthwise)" if layer.depthwise else layer.op
            row = {"layer": layer.name, "op": kind, "start": start, "end": done, "cycles": done - start + 1}
            rows.append(row | {"MACs": layer.macs, "utilization": f"{share:.1%}"})
    return rows


def compare(
    graph: Graph,
    program: Program,
    images: str | Path | None = None,
    *,
    count: int = 4,
    memory: MemoryModel | None = None,
    wave: str | Path | None = None,
    progress: Progress = silent,
) -> comparison.Comparison:
    """Run reference, functional, cycle model and Verilog side by side."""
    raw, _, _ = _images(graph, images, count)
    codes = reference.quantize_batch(graph, raw)
    return comparison.compare(
        graph, program, codes, memory or MemoryModel(), computed=needed(graph), wave=wave, progress=progress
    )


def boards() -> list[dict]:
    """A row per board: budget, clock, memory, and the size of its default accelerator."""
    return [
        {
            "board": board.name,
            "part": board.part,
            **dataclasses.asdict(board.budget),
            "clock MHz": board.clock_mhz,
            "multipliers": board.default.multipliers,
        }
        for board in BOARDS.values()
    ]
