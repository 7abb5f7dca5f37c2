"""Published models quantized by onnxruntime, imported and compiled, beside what onnxruntime computes from them.

Each row exports a model with its weights to ONNX, quantizes the file with `onnxruntime.quantization.quantize_static` on calibration
images, imports it, and compares predictions and the codes of every layer on images that nothing was calibrated on.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from . import results, results_graphs, results_table
from .arch.errors import UserError
from .arch.graph import Graph, Preprocessing
from .arch.operators import Attention
from .compiler import compile
from .examples.zoo import CATALOGUE
from .quant import onnx_file, onnx_import, onnx_torch
from .results_graphs import MACHINES
from .sim import functional, reference

__all__ = ["ROWS", "Row", "main", "measure", "summary", "table"]

CALIBRATION, IMAGES = 32, 64
MACHINE = "fixed8"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A model and how onnxruntime quantizes it: signed 8 bits throughout, activations by their extremes."""

    model: str
    qoperator: bool
    """Nodes on codes; otherwise QuantizeLinear and DequantizeLinear around float nodes."""
    by_channel: bool
    """A scale for each output channel of weights, otherwise one for each tensor."""


ROWS = {
    f"{model}-{'qoperator' if qoperator else 'qdq'}-{'channel' if by_channel else 'tensor'}": Row(
        model=model, qoperator=qoperator, by_channel=by_channel
    )
    for model in ("resnet20", "resnet56", "mobilenet-v2", "deit-tiny")
    for qoperator in (False, True)
    for by_channel in (True, False)
}


def measure(job: results_table.Job) -> dict:
    """Make and compare one of `ROWS`; a JSON object."""
    for package, extra in (("onnxruntime", "test"), ("onnxscript", "onnx")):
        if find_spec(package) is None:
            raise UserError(
                f"{package} must be installed to quantize elsewhere; pip install terrazzo[{extra}]"
            )
    import onnx
    import onnxruntime

    from . import onnx_layers

    row, steps = ROWS[job.row], results_table.Steps()
    entry = CATALOGUE[row.model]
    plain = job.files / f"{row.model}.onnx"
    if not plain.is_file():
        job.progress("exporting")
        with steps.step("export"):
            found = results.model(row.model, job.data)
            onnx_torch.export(found.module, found.sample[:1], plain)
    path = job.files / f"{job.row}.onnx"
    job.progress("quantizing with onnxruntime")
    with steps.step("quantize"):
        _quantize(row, job.data, plain, path)
    with steps.step("import"):
        preprocessing = Preprocessing(scale=1 / 255, mean=entry.mean, std=entry.std, resize=entry.resize)
        source = onnx_import.load(path, preprocessing=preprocessing)
        graph, _ = onnx_import.integer(source)
    images = results_graphs.held_out(row.model, job.data, IMAGES)
    job.progress(f"{IMAGES} images in the reference")
    with steps.step("reference"):
        codes = reference.quantize_batch(graph, images)
        ours = reference.run(graph, codes).reshape(IMAGES, -1)
    job.progress(f"{IMAGES} images in onnxruntime, layer by layer")
    with steps.step("onnxruntime"):
        layers, theirs = onnx_layers.compare(onnx.load(path), source, graph, images)
    with steps.step("float"):
        real = onnx_layers.outputs(onnx.load(plain), preprocessing, images)
    job.progress("compiling")
    with steps.step("compile"):
        program = compile(graph, MACHINES[MACHINE])
    with steps.step("functional"):
        found = functional.run(program, codes[:1]).reshape(1, -1)
    return {
        "model": row.model,
        "machine": MACHINE,
        "calibration_images": CALIBRATION,
        "images": IMAGES,
        "agreement": _agreement(ours, theirs),
        "agreement_with_float": _agreement(ours, real),
        "onnxruntime_agreement_with_float": _agreement(theirs, real),
        "equal": bool(np.array_equal(found, ours[:1])),
        "operators": len(graph.operators),
        **summary(layers, graph),
        "float_opset": onnx_file.read(plain).opset,
        "onnxruntime": onnxruntime.__version__,
        "steps": steps.found,
        "command": f"python -m terrazzo.results_imported --only {job.row} --force",
    }


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Per cent of images that both give one class."""
    return round(100 * float((a.argmax(axis=1) == b.argmax(axis=1)).mean()), 2)


def _quantize(row: Row, data: Path, plain: Path, path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    from .onnx_layers import reals

    entry = CATALOGUE[row.model]
    images = results.images(entry, data)[0]
    chosen = images.take(np.linspace(0, len(images) - 1, CALIBRATION).round())[:]
    preprocessing = Preprocessing(scale=1 / 255, mean=entry.mean, std=entry.std)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(chosen)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.rest, None)
            return None if image is None else {"image": reals(image[None], preprocessing)}

    logging.disable(logging.WARNING)  # advice to optimize the file first
    quantize_static(
        plain,
        path,
        Reader(),
        quant_format=QuantFormat.QOperator if row.qoperator else QuantFormat.QDQ,
        per_channel=row.by_channel,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    logging.disable(logging.NOTSET)


def summary(layers: list, graph: Graph) -> dict:
    """Of `onnx_layers.Compared`: attention apart from the rest, since its softmax is the machine's own."""
    behind = {op.output for op in graph.operators if isinstance(op, Attention)}
    behind |= {op.output for op in graph.operators if getattr(op, "input", None) in behind}
    attended = [layer for layer in layers if layer.tensor in behind]
    others = [layer for layer in layers if layer.tensor not in behind]

    def share(count: str, part: list) -> float:
        return round(min((100 * getattr(layer, count) / layer.codes for layer in part), default=100.0), 3)

    return {
        "layers": len(others),
        "codes": sum(layer.codes for layer in others),
        "same_percent": round(100 * sum(layer.same for layer in others) / sum(x.codes for x in others), 3),
        "least_same_percent": share("same", others),
        "least_near_percent": share("near", others),
        "most_codes": max(layer.most for layer in others),
        "layers_near": sum(layer.near >= 0.999 * layer.codes for layer in others),
        "layers_same": sum(layer.same >= 0.999 * layer.codes for layer in others),
        "attentions": len(attended),
        "attention_same_percent": share("same", attended) if attended else None,
        "attention_near_percent": share("near", attended) if attended else None,
        "by_layer": [dataclasses.asdict(layer) for layer in layers],
    }


def table(rows: dict[str, dict]) -> str:
    """The rows as Markdown."""
    names = (
        "row|images|same class as onnxruntime, %|same as float: imported, onnxruntime, %|layers|with >= 99.9 % within a code|least within a code, %|farthest, codes|"
        "with >= 99.9 % equal|equal codes, all layers, %|least equal, %|attention: least within a code (equal), %|"
        "functional = reference"
    )
    lines = []
    for name, row in rows.items():
        attention = (
            ""
            if not row["attentions"]
            else f"{row['attention_near_percent']} ({row['attention_same_percent']})"
        )
        cells = [
            f"`{name}`",
            row["images"],
            f"{row['agreement']:g}",
            f"{row['agreement_with_float']:g}, {row['onnxruntime_agreement_with_float']:g}",
            row["layers"],
            row["layers_near"],
            row["least_near_percent"],
            row["most_codes"],
            row["layers_same"],
            row["same_percent"],
            row["least_same_percent"],
            attention,
            "yes" if row["equal"] else "no",
        ]
        lines.append(cells)
    return results_table.markdown(names.split("|"), lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    part = results_table.Part(
        name="imported", module="terrazzo.results_imported", rows=list(ROWS), measure=measure, table=table
    )
    return results_table.run(part, " ".join(__doc__.split("\n\n")[0].split()), arguments)


if __name__ == "__main__":
    sys.exit(main())
