"""How near quantized models come to float on calibration images that were held out.

Constants of the quantizer and settings of training are chosen by these figures: no image that `terrazzo.results`
measures accuracy on is read, and no label.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from .arch.errors import UserError
from .arch.graph import Graph, Preprocessing
from .examples.zoo import CATALOGUE
from .quant import data, frontend, influence, quantizer
from .quant.calibrate import preprocess
from .quant.finetune import Settings, finetune
from .quant.floatgraph import FloatGraph
from .results import ROWS, Row, images, model
from .results_table import data_folder
from .sim import reference

__all__ = ["closeness", "folds", "main", "study"]

_BATCH = 16


def folds(calibration: data.Images, count: int) -> list[tuple[data.Images, data.Images]]:
    """`count` times the images to quantize with and those held out, which are every `count`-th."""
    place = np.arange(len(calibration))
    return [
        (calibration.take(place[place % count != fold]), calibration.take(place[place % count == fold]))
        for fold in range(count)
    ]


def closeness(graph: Graph, float_graph: FloatGraph, held: data.Images) -> dict[str, float]:
    """Mean divergence of the graph's answers from those of float (nats), and per cent of equal predictions."""
    output, divergence, equal = graph.tensor(graph.output), 0.0, 0
    for raw in held.batches(_BATCH):
        real = float_graph.run(preprocess(raw, graph.preprocessing)).flatten(1).double().numpy()
        codes = reference.run(graph, reference.quantize_batch(graph, raw)).reshape(real.shape)
        found = (codes.astype(np.float64) - output.zero_point) * output.scale
        equal += int((real.argmax(1) == found.argmax(1)).sum())
        real, found = log_softmax(real, 1), log_softmax(found, 1)
        divergence += float((np.exp(real) * (real - found)).sum())
    return {"divergence": round(divergence / len(held), 4), "agreement": round(100 * equal / len(held), 2)}


def study(
    row: Row,
    float_graph: FloatGraph,
    preprocessing: Preprocessing,
    calibration: data.Images,
    *,
    plain: float = influence.PLAIN,
    count: int = 2,
    training: Settings | None = None,
) -> Iterator[dict]:
    """For each fold the closeness of the quantized graph with `influence.PLAIN` as given, and after each epoch of `training`."""
    for fold, (rest, held) in enumerate(folds(calibration, count)):
        graph = _quantized(row, float_graph, rest, preprocessing, plain)
        about = {"plain": plain, "fold": fold, "images": len(rest), "held": len(held)}
        yield about | {"epochs": 0} | closeness(graph, float_graph, held)
        with tempfile.TemporaryDirectory() as kept:
            for epoch in range(1, training.epochs + 1 if training else 1):
                steps, checkpoint = epoch * (len(rest) // training.batch), Path(kept) / "checkpoint"
                found = finetune(graph, float_graph, rest, training, checkpoint=checkpoint, stop=steps)
                figures = {"epochs": epoch, "loss": round(found.losses[-1], 4)}
                yield about | figures | closeness(found.graph, float_graph, held)


def _quantized(row: Row, float_graph: FloatGraph, rest: data.Images, preprocessing, plain: float) -> Graph:
    before, influence.PLAIN = influence.PLAIN, plain
    try:
        return quantizer.quantize(
            float_graph,
            rest,
            preprocessing,
            mixture=dict(row.mixture),
            drain=row.drain,
            activation_bits=row.bits,
            functions=row.functions,
        )[0]
    finally:
        influence.PLAIN = before


def main(arguments: list[str] | None = None) -> int:
    """Command line: a JSON object a line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m terrazzo.holdout", description=__doc__.splitlines()[0])
    parser.add_argument("row", choices=[*ROWS], metavar="ROW", help="of terrazzo.results")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument(
        "--plain", type=float, nargs="+", default=[influence.PLAIN], help="see quant.influence"
    )
    parser.add_argument("--train", action="store_true", help="as the row is trained")
    options = parser.parse_args(arguments)
    row = ROWS[options.row]
    try:
        folder = data_folder()
        found = model(row.model, folder)
        float_graph = frontend.import_module(found.module, found.sample, row.model)
        calibration, _ = images(CATALOGUE[row.model], folder)
        training = row.training if options.train else None
        for plain in options.plain:
            for line in study(
                row,
                float_graph,
                found.preprocessing,
                calibration,
                plain=plain,
                count=options.folds,
                training=training,
            ):
                print(json.dumps({"row": options.row} | line), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
