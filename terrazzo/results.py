"""Accuracy of published models as integer graphs: `make results` fills build/results.json and docs/results.md.

Weights and images come from the folder of TERRAZZO_DATA. Every row runs in a process of its own, so that its peak
memory is its own; a row that exists is kept, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .arch.errors import UserError
from .arch.files import write_text
from .arch.graph import Graph, Preprocessing
from .arch.schemes import Scheme, storage_bits
from .examples.zoo import CATALOGUE, Entry
from .quant import data, frontend, quantizer, source
from .quant.finetune import Settings, finetune
from .quant.floatgraph import FloatGraph
from .sim import reference

__all__ = ["ROWS", "Row", "main", "measure"]

CALIBRATION_IMAGES = 128
CIFAR_CALIBRATION_IMAGES = 512
BATCH = 16
_BEGIN, _END = "<!-- accuracy: begin -->", "<!-- accuracy: end -->"
F8, F4, P4 = Scheme.FIXED8, Scheme.FIXED4, Scheme.POT4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    model: str
    mixture: Mapping[Scheme, int]
    """Lanes of each scheme in one block of output channels."""
    bits: int | Mapping[str, int] = 8
    """Bits of activations, see `quant.bits`."""
    lost: float | None = None
    """Points of top-1 that may be lost against float on the same images; None where the figure is only reported."""
    agreement: float | None = None
    """Per cent of predictions that must be those of float."""
    training: Settings | None = None
    """How the quantized graph is trained on the images that calibration takes its images from."""


_F4 = {F8: 3, F4: 61}
_V2_F4 = {F8: 2, F4: 38}
_P4_F4 = {F8: 1, F4: 5, P4: 10}
ROWS = {
    "deit-tiny-fixed8": Row(model="deit-tiny", mixture={F8: 64}, lost=0.8, agreement=94.0),
    "deit-tiny-fixed4": Row(model="deit-tiny", mixture=_F4, lost=2.7),
    "deit-tiny-pot4": Row(model="deit-tiny", mixture={F8: 35, P4: 29}, lost=3.2),
    "mobilenet-v1-fixed8": Row(model="mobilenet-v1", mixture={F8: 64}, lost=1.4),
    "mobilenet-v2-fixed8": Row(model="mobilenet-v2", mixture={F8: 64}, lost=0.8),
    "mobilenet-v2-fixed4": Row(model="mobilenet-v2", mixture=_V2_F4, lost=4.0),
    "mobilenet-v2-fixed4-a5": Row(model="mobilenet-v2", mixture=_V2_F4, bits=5, lost=6.0),
    "deit-tiny-fixed4-a4": Row(model="deit-tiny", mixture=_F4, bits={"other": 4, "q": 8, "k": 8, "v": 8}),
    "deit-tiny-fixed4-a4-qkve4": Row(model="deit-tiny", mixture=_F4, bits={"other": 4, "e": 4}),
    "resnet20-fixed8": Row(model="resnet20", mixture={F8: 16}, lost=0.4),
    "resnet56-fixed8": Row(model="resnet56", mixture={F8: 16}, lost=0.4),
    "resnet20-pot4": Row(model="resnet20", mixture=_P4_F4, lost=2.0),
    "resnet20-pot4-trained": Row(
        model="resnet20",
        mixture=_P4_F4,
        lost=1.0,
        training=Settings(epochs=4, batch=64, rate=2e-3, flip=True, shift=4),
    ),
}
"""Mixtures are of whole lanes: 61 of 64 is 95.3 %, 38 of 40 is 95 %, and 10 : 5 : 1 of 16 is 62 : 31 : 6."""


def _folder() -> Path:
    folder = os.environ.get("TERRAZZO_DATA")
    if not folder or not Path(folder).is_dir():
        raise UserError(
            "TERRAZZO_DATA must name the folder of weights and images, which does not exist; export it"
        )
    return Path(folder)


def _images(entry: Entry, folder: Path) -> tuple[data.Images, data.Images]:
    """To calibrate on, and to measure on; no image is in both."""

    def opened(name: str) -> data.Images:
        return data.open_images(folder / name, entry.shape, resize=entry.resize)

    if entry.calibration is None:
        return opened(entry.images).split(CALIBRATION_IMAGES)
    return opened(entry.calibration).split(CIFAR_CALIBRATION_IMAGES)[0], opened(entry.images)


def _classes(outputs: np.ndarray, entry: Entry) -> np.ndarray:
    return outputs.reshape(len(outputs), -1).argmax(axis=1) - entry.first_class


def _shares(graph: Graph) -> tuple[dict[str, float], dict[str, float]]:
    """Per cent of rows and of weights by scheme."""
    rows, weights = dict.fromkeys(Scheme, 0), dict.fromkeys(Scheme, 0)
    for key, schemes in graph.constants.items():
        if key.endswith("/scheme"):
            depth = graph.constants[key.removesuffix("scheme") + "weight"][0].size
            for scheme, count in zip(*np.unique(schemes, return_counts=True), strict=True):
                rows[Scheme(scheme)] += int(count)
                weights[Scheme(scheme)] += int(count) * depth
    return tuple(
        {s.name: round(100 * c / sum(part.values()), 1) for s, c in part.items() if c}
        for part in (rows, weights)
    )


def _train(
    graph: Graph, float_graph: FloatGraph, entry: Entry, folder: Path, settings: Settings, progress
) -> tuple[Graph, dict]:
    """The graph trained on all images of `entry.calibration`, and what that took."""
    images = data.open_images(folder / entry.calibration, entry.shape, resize=entry.resize)
    start, processor = time.perf_counter(), time.process_time()

    def step(done: int, total: int, loss: float) -> None:
        if done % max(total // 20, 1) == 0:
            progress(f"training: step {done} of {total}, loss {loss:.4g}")

    found = finetune(graph, float_graph, images, settings, step=step)
    taken = {
        "training": dataclasses.asdict(settings) | {"images": len(images)},
        "training_losses": [round(loss, 5) for loss in found.losses],
        "training_seconds": round(time.perf_counter() - start, 1),
        "training_processor_seconds": round(time.process_time() - processor, 1),
    }
    return found.graph, taken


def measure(name: str, folder: Path, progress=print) -> dict:
    """Quantize and measure one row of `ROWS`: a JSON object."""
    row = ROWS[name]
    entry = CATALOGUE[row.model]
    preprocessing = Preprocessing(scale=1 / 255, mean=entry.mean, std=entry.std, resize=entry.resize)
    model = source.load(
        entry.build,
        name=row.model,
        shape=entry.shape,
        preprocessing=preprocessing,
        weights=folder / entry.weights,
    )
    calibration, images = _images(entry, folder)
    float_graph = frontend.import_module(model.module, model.sample, row.model)
    progress(f"{name}: quantizing on {len(calibration)} images")
    start, processor = time.perf_counter(), time.process_time()
    graph, _ = quantizer.quantize(
        float_graph, calibration, preprocessing, mixture=dict(row.mixture), activation_bits=row.bits
    )
    quantize_s, processor_s = time.perf_counter() - start, time.process_time() - processor
    quantize_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    trained = {}
    if row.training is not None:
        graph, trained = _train(graph, float_graph, entry, folder, row.training, progress)
    start = time.perf_counter()
    real, integer = [], []
    for batch in images.batches(BATCH):
        real.append(float_graph.classify(batch, preprocessing) - entry.first_class)
        integer.append(_classes(reference.run(graph, reference.quantize_batch(graph, batch)), entry))
        progress(f"{name}: {sum(map(len, real))} of {len(images)} images")
    real, integer = np.concatenate(real), np.concatenate(integer)
    rows, weights = _shares(graph)
    bits = sum(storage_bits(Scheme[scheme]) * share / 100 for scheme, share in weights.items())
    return {
        "model": row.model,
        "lanes": {scheme.name: count for scheme, count in row.mixture.items()},
        "rows_percent": rows,
        "weights_percent": weights,
        "weight_bits": round(bits, 2),
        "activation_bits": row.bits if isinstance(row.bits, int) else dict(row.bits),
        "calibration_images": len(calibration),
        "images": len(images),
        "float_top1": round(100 * float((real == images.labels).mean()), 2),
        "integer_top1": round(100 * float((integer == images.labels).mean()), 2),
        "agreement": round(100 * float((real == integer).mean()), 2),
        "target_lost": row.lost,
        "target_agreement": row.agreement,
        "quantize_seconds": round(quantize_s, 1),
        "quantize_processor_seconds": round(processor_s, 1),
        "quantize_peak_mib": round(quantize_mib),
        "measure_seconds": round(time.perf_counter() - start, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        **trained,
        "command": f"python -m terrazzo.results --only {name} --force",
    }


def _trained(row: dict) -> str:
    training = row.get("training")
    return "" if training is None else f", {training['epochs']} epochs of {training['images']}"


def _met(row: dict) -> str:
    if row["target_lost"] is None:
        return "reported"
    good = row["float_top1"] - row["integer_top1"] <= row["target_lost"] + 1e-9
    good &= row["target_agreement"] is None or row["agreement"] >= row["target_agreement"]
    return "yes" if good else "no"


def table(rows: dict[str, dict]) -> str:
    """The rows as Markdown."""
    lines = [
        "| row | model | rows, % | activations | calibration | images | float | integer | agreement "
        "| demanded | met | quantize, wall / CPU s | peak MiB |",
        "|---" * 13 + "|",
    ]
    for name, row in rows.items():
        shares = " ".join(f"{scheme} {share:g}" for scheme, share in row["rows_percent"].items())
        bits = row["activation_bits"]
        bits = f"A{bits}" if isinstance(bits, int) else " ".join(f"{k}:{v}" for k, v in bits.items())
        demanded = "" if row["target_lost"] is None else f"-{row['target_lost']:g}"
        if row["target_agreement"]:
            demanded += f", agreement {row['target_agreement']:g}"
        cells = (
            f"`{name}`",
            row["model"],
            shares,
            bits,
            f"{row['calibration_images']}{_trained(row)}",
            row["images"],
            row["float_top1"],
            row["integer_top1"],
            row["agreement"],
            demanded,
            _met(row),
            f"{row['quantize_seconds']:g} / {row['quantize_processor_seconds']:g}",
            row["quantize_peak_mib"],
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _read(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: must be JSON, but {error}; remove it to measure all rows again") from None
    return found


def _document(docs: Path, rows: dict[str, dict]) -> None:
    text = docs.read_text() if docs.is_file() else f"# Results\n\n{_BEGIN}\n{_END}\n"
    before, found, rest = text.partition(_BEGIN)
    if not found or _END not in rest:
        raise UserError(f"{docs}: must contain the lines {_BEGIN} and {_END}; put them back")
    write_text(docs, f"{before}{_BEGIN}\n{table(rows)}\n{_END}{rest.partition(_END)[2]}")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m terrazzo.results", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/results.json"))
    parser.add_argument("--docs", type=Path, help="Markdown file whose table is replaced")
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--force", action="store_true", help="measure rows that exist again")
    parser.add_argument("--measure", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        folder = _folder()
        if options.measure:
            found = measure(options.measure, folder, lambda text: print(text, file=sys.stderr, flush=True))
            print(json.dumps(found))
            return 0
        everything = _read(options.out)
        rows = everything.setdefault("accuracy", {})
        for number, name in enumerate(options.only, 1):
            if name in rows and not options.force:
                continue
            print(f"[{number}/{len(options.only)}] {name}", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "terrazzo.results", "--measure", name]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if run.returncode:
                raise UserError(f"row {name}: measuring failed with status {run.returncode}; see above")
            rows[name] = json.loads(run.stdout.splitlines()[-1])
            everything["accuracy"] = rows = {key: rows[key] for key in ROWS if key in rows}
            write_text(options.out, json.dumps(everything, indent=2) + "\n")
        if options.docs:
            _document(options.docs, rows)
        print(table(rows))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
