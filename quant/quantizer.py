"""Post-training quantization: a float graph and calibration images in, an integer graph and a report out."""

from __future__ import annotations

import numpy as np

from ..arch import numerics
from ..arch.graph import Graph, Preprocessing
from ..arch.schemes import Scheme
from .builder import Builder
from .calibrate import collect, preprocess
from .emission import build
from .floatgraph import FloatGraph
from .report import Execute, Layer, Report, measure
from .rows import check_mixture
from .units import QuantizeError, rewrite

__all__ = ["Layer", "QuantizeError", "Report", "quantize"]


def quantize(
    float_graph: FloatGraph,
    calibration_images: np.ndarray,
    preprocessing: Preprocessing,
    *,
    mixture: dict[Scheme, int],
    drain: int = 1,
    activation_bits: int = 8,
    name: str | None = None,
    labels: tuple[str, ...] = (),
    execute: Execute | None = None,
) -> tuple[Graph, Report]:
    """The integer graph of `float_graph`, calibrated on raw images (N, H, W, C).

    `mixture` counts the lanes of each scheme in one array and `drain` the channels drained at once: of every block
    of sum(mixture) output channels the rows split exactly so (see `rows.assign`). With `execute` the report holds
    the signal to noise ratio of every layer, on at most 128 of the images. Raises QuantizeError, rows.MixtureError.
    """
    check_mixture(mixture, drain)
    if not 4 <= activation_bits <= 8:
        raise QuantizeError(f"activation_bits must be 4..8, not {activation_bits}")
    images = np.asarray(calibration_images)
    if images.ndim != 4 or images.shape[1:] != tuple(float_graph.input_shape) or not len(images):
        raise QuantizeError(
            f"calibration images must have shape (N, {', '.join(map(str, float_graph.input_shape))}), N >= 1, "
            f"not {images.shape}"
        )
    if not np.isfinite(images.astype(np.float64)).all():
        raise QuantizeError("calibration images must be finite, not NaN or infinite; check the images")
    model = rewrite(float_graph)
    real = preprocess(images, preprocessing)
    builder = Builder(model, collect(model, real), mixture, drain, activation_bits)
    output = build(builder)
    graph = Graph(
        name=name or float_graph.name,
        input="input",
        output=output,
        preprocessing=preprocessing,
        tensors=tuple(builder.tensors.values()),
        operators=tuple(builder.operators),
        constants=builder.constants,
        labels=labels,
    )
    report = Report(graph.name, len(images), builder.layers)
    if execute is not None:
        shown = real[:128]
        found = builder.range("input", "s8")
        codes = numerics.quantize_input(shown.numpy(), found.scale, found.zero_point, found.lo, found.hi)
        measure(report, graph, model, shown, codes, execute)
    return graph, report
