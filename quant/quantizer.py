"""Post-training quantization: a float graph and calibration images in, an integer graph and a report out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from ..arch import numerics
from ..arch.graph import Graph, Preprocessing
from ..arch.schemes import Scheme
from .bits import bits_by_class
from .builder import Builder
from .calibrate import Stream, collect, preprocess
from .center import center
from .compensate import Follower
from .data import Images, open_images
from .emission import build
from .equalize import equalize
from .floatgraph import FloatGraph
from .functions import check_functions, replaced
from .report import Execute, Layer, Report, measure
from .rows import check_mixture
from .units import QuantizeError, rewrite

__all__ = ["Layer", "QuantizeError", "Report", "quantize"]

_SHOWN = 32
"""Images that the report measures layers on."""


def quantize(
    float_graph: FloatGraph,
    calibration_images: np.ndarray | Images | object,
    preprocessing: Preprocessing,
    *,
    mixture: dict[Scheme, int],
    drain: int = 1,
    activation_bits: int | Mapping[str, int] = 8,
    functions: str = "exact",
    name: str | None = None,
    labels: tuple[str, ...] = (),
    execute: Execute | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> tuple[Graph, Report]:
    """The integer graph of `float_graph`, calibrated on raw images.

    `mixture` counts the lanes of each scheme in one array and `drain` the channels drained at once: of every block
    of sum(mixture) output channels the rows split exactly so (see `rows.assign`). `activation_bits` is one number 4..8
    or one per class of tensor (see `bits.CLASSES`), `functions` one of `functions.FAMILIES`: layers are fitted to what those
    of other systems give them. With `execute` the report holds
    the signal to noise ratio of every layer, on at most 32 of the images. `progress` gets the name of each step that
    begins: "equalize" and "calibrate", which are passes over the images, and "rows". Images are an array (N, H, W, C), or any
    other source of `data.open_images`. Raises QuantizeError, rows.MixtureError, data.DataError.
    """
    check_mixture(mixture, drain)
    check_functions(functions)
    bits = bits_by_class(activation_bits)
    images = open_images(calibration_images, tuple(float_graph.input_shape), raw_max=preprocessing.raw_max)
    model = rewrite(float_graph)
    stream = Stream(images, preprocessing)
    progress("equalize")
    fine = min(bits.values()) >= 8
    if not fine:
        model = center(model, stream)
    weight_bits = 8 if set(mixture) == {Scheme.FIXED8} else 4
    model = equalize(model, stream, activation_bits=bits["other"], weight_bits=weight_bits)
    progress("calibrate")
    made = dataclasses.replace(model, nodes=[replaced(node, functions) for node in model.nodes])
    other = {
        new.name: new for new, node in zip(made.nodes, model.nodes, strict=True) if new.attrs != node.attrs
    }
    follows = bool(other) or not fine
    statistics = collect(model, stream, other, weigh=not fine, moments=not follows)
    progress("rows")
    builder = Builder(made, statistics, mixture, drain, bits)
    if follows:
        builder.follower = Follower(builder, stream, model)
    output = build(builder)
    if builder.problems:
        raise QuantizeError("\n".join(builder.problems))
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
        shown = preprocess(images[:_SHOWN], preprocessing)
        found = builder.range("input", "s8")
        codes = numerics.quantize_input(shown.numpy(), found.scale, found.zero_point, found.lo, found.hi)
        measure(report, graph, model, shown, codes, execute)
    return graph, report
