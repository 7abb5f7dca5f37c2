"""Accuracy of published models as integer graphs: `make results` fills build/results.json and docs/results.md.

Weights and images come from the folder of TERRAZZO_DATA. The other parts of `make results` are the modules
`results_*`; `results_table` runs them all.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from . import results_table
from .arch.graph import Graph, Preprocessing
from .arch.schemes import Scheme, storage_bits
from .examples.zoo import CATALOGUE, Entry
from .quant import data, frontend, quantizer, source
from .quant.finetune import Settings, finetune
from .quant.floatgraph import FloatGraph
from .sim import reference

__all__ = ["ROWS", "Row", "images", "main", "measure", "model", "training_images"]

CALIBRATION_IMAGES = 128
CIFAR_CALIBRATION_IMAGES = 512
BATCH = 16
F8, F4, P4 = Scheme.FIXED8, Scheme.FIXED4, Scheme.POT4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    model: str
    mixture: Mapping[Scheme, int]
    """Lanes of each scheme in one block of output channels."""
    drain: int = 1
    """Rows that follow the mixture by themselves, see `quant.rows.assign`."""
    bits: int | Mapping[str, int] = 8
    """Bits of activations, see `quant.bits`."""
    functions: str = "exact"
    """See `quant.functions`."""
    lost: float | None = None
    """Points of top-1 that may be lost against float on the same images; None where the figure is only reported."""
    agreement: float | None = None
    """Per cent of predictions that must be those of float."""
    training: Settings | None = None
    """How the quantized graph is trained on `training_images`."""


_F4 = {F8: 3, F4: 61}
_V2_F4 = {F8: 2, F4: 38}
_16_F4 = {F8: 1, F4: 15}
_P4_F4 = {F8: 1, F4: 5, P4: 10}
ROWS = {
    "deit-tiny-fixed8": Row(model="deit-tiny", mixture={F8: 64}, lost=0.8, agreement=94.0),
    "deit-tiny-fixed4": Row(model="deit-tiny", mixture=_F4, lost=2.7),
    "deit-tiny-mixed": Row(model="deit-tiny", mixture={F8: 8, F4: 16}, drain=4),
    "deit-tiny-pot4": Row(model="deit-tiny", mixture={F8: 35, P4: 29}, lost=3.2),
    "deit-tiny-fixed8-ivit": Row(model="deit-tiny", mixture={F8: 64}, functions="i-vit"),
    "deit-tiny-fixed8-heatvit": Row(model="deit-tiny", mixture={F8: 64}, functions="heatvit"),
    "deit-tiny-fixed8-heatvit-trained": Row(
        model="deit-tiny",
        mixture={F8: 64},
        functions="heatvit",
        training=Settings(epochs=2, batch=8, rate=1e-3, flip=True, shift=8),
    ),
    "mobilenet-v1-fixed8": Row(model="mobilenet-v1", mixture={F8: 64}, lost=1.4),
    "mobilenet-v2-fixed8": Row(model="mobilenet-v2", mixture={F8: 64}, lost=0.8),
    "mobilenet-v2-fixed4": Row(model="mobilenet-v2", mixture=_V2_F4, lost=4.0),
    "mobilenet-v2-fixed4-a5": Row(model="mobilenet-v2", mixture=_V2_F4, bits=5, lost=6.0),
    "mobilenet-v2-fixed4-a5-trained": Row(
        model="mobilenet-v2",
        mixture=_V2_F4,
        bits=5,
        lost=6.0,
        training=Settings(epochs=2, batch=8, rate=1.5e-4, flip=True, shift=8),
    ),
    "mobilenet-v2-fixed4-a5-grouped8": Row(
        model="mobilenet-v2", mixture=_V2_F4, bits={"other": 5, "grouped": 8}, lost=6.0
    ),
    "deit-tiny-fixed4-a4": Row(model="deit-tiny", mixture=_F4, bits={"other": 4, "q": 8, "k": 8, "v": 8}),
    "deit-tiny-fixed4-a4-qkve4": Row(model="deit-tiny", mixture=_F4, bits={"other": 4, "e": 4}),
    "resnet20-fixed8": Row(model="resnet20", mixture={F8: 16}, lost=0.4),
    "resnet56-fixed8": Row(model="resnet56", mixture={F8: 16}, lost=0.4),
    "resnet20-fixed4-a5": Row(model="resnet20", mixture=_16_F4, bits=5),
    "resnet56-fixed4-a5": Row(model="resnet56", mixture=_16_F4, bits=5),
    "resnet20-pot4": Row(model="resnet20", mixture=_P4_F4, lost=2.0),
    "resnet20-pot4-trained": Row(
        model="resnet20",
        mixture=_P4_F4,
        lost=1.0,
        training=Settings(epochs=4, batch=64, rate=2e-3, flip=True, shift=4),
    ),
}
"""Mixtures are of whole lanes: 61 of 64 is 95.3 %, 38 of 40 is 95 %, 15 of 16 is 93.8 %, and 10 : 5 : 1 of 16 is 62 : 31 : 6."""


def images(entry: Entry, folder: Path) -> tuple[data.Images, data.Images]:
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


def training_images(entry: Entry, folder: Path) -> data.Images:
    """All images that calibration takes its images from; none that is measured."""
    if entry.calibration is None:
        return images(entry, folder)[0]
    return data.open_images(folder / entry.calibration, entry.shape, resize=entry.resize)


def _train(
    graph: Graph, float_graph: FloatGraph, images: data.Images, settings: Settings, progress
) -> tuple[Graph, dict]:
    """The graph trained on `images`, and what that took."""
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


def model(name: str, folder: Path) -> source.Source:
    """A model of the catalogue with its weights."""
    entry = CATALOGUE[name]
    return source.load(
        entry.build,
        name=name,
        shape=entry.shape,
        preprocessing=Preprocessing(scale=1 / 255, mean=entry.mean, std=entry.std, resize=entry.resize),
        weights=folder / entry.weights,
    )


def measure(name: str, folder: Path, progress=print) -> dict:
    """Quantize and measure one row of `ROWS`: a JSON object."""
    row = ROWS[name]
    entry, found = CATALOGUE[row.model], model(row.model, folder)
    preprocessing = found.preprocessing
    calibration, measured = images(entry, folder)
    float_graph = frontend.import_module(found.module, found.sample, row.model)
    progress(f"{name}: quantizing on {len(calibration)} images")
    start, processor = time.perf_counter(), time.process_time()
    graph, _ = quantizer.quantize(
        float_graph,
        calibration,
        preprocessing,
        mixture=dict(row.mixture),
        drain=row.drain,
        activation_bits=row.bits,
        functions=row.functions,
    )
    quantize_s, processor_s = time.perf_counter() - start, time.process_time() - processor
    quantize_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    trained = {}
    if row.training is not None:
        graph, trained = _train(graph, float_graph, training_images(entry, folder), row.training, progress)
    start = time.perf_counter()
    real, integer = [], []
    for batch in measured.batches(BATCH):
        real.append(float_graph.classify(batch, preprocessing) - entry.first_class)
        integer.append(_classes(reference.run(graph, reference.quantize_batch(graph, batch)), entry))
        progress(f"{name}: {sum(map(len, real))} of {len(measured)} images")
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
        "functions": row.functions,
        "calibration_images": len(calibration),
        "images": len(measured),
        "float_top1": round(100 * float((real == measured.labels).mean()), 2),
        "integer_top1": round(100 * float((integer == measured.labels).mean()), 2),
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
    names = "row|model|rows, %|activations|calibration|images|float|integer|agreement|demanded|met"
    header = [*names.split("|"), "quantize, wall / CPU s", "peak MiB"]
    lines = []
    for name, row in rows.items():
        shares = " ".join(f"{scheme} {share:g}" for scheme, share in row["rows_percent"].items())
        bits = row["activation_bits"]
        bits = f"A{bits}" if isinstance(bits, int) else " ".join(f"{k}:{v}" for k, v in bits.items())
        functions = row.get("functions", "exact")
        bits += "" if functions == "exact" else f", {functions}"
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
        lines.append(cells)
    return results_table.markdown(header, lines)


def _measured(job: results_table.Job) -> dict:
    return measure(job.row, job.data, lambda text: print(text, file=sys.stderr, flush=True))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    part = results_table.Part(
        name="accuracy", module="terrazzo.results", rows=list(ROWS), measure=_measured, table=table
    )
    return results_table.run(part, __doc__.splitlines()[0], arguments)


if __name__ == "__main__":
    sys.exit(main())
