"""What quantization did to each layer, in numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np

from ..arch.graph import Attention, Graph
from ..arch.numerics import EXP_STEP
from .floatgraph import FloatGraph

__all__ = ["Execute", "Layer", "Report", "measure"]

Execute = Callable[[Graph, np.ndarray], dict[str, np.ndarray]]
"""Runs a graph on input codes (N, ...) and returns every tensor by name: `sim.reference.run` with keep=True."""


@dataclasses.dataclass
class Layer:
    """One integer operator."""

    name: str
    op: str
    output: str
    """Float node whose value the operator writes."""
    clipped: float | None = None
    """Fraction of the float values outside the output's range."""
    schemes: dict[str, int] = dataclasses.field(default_factory=dict)
    """Weight rows by scheme."""
    accumulator_bits: int | None = None
    """Signed bits that the worst row can need, proved from its codes and the input's range."""
    grown_rows: int = 0
    """Rows whose scale grew to keep the accumulator within its bits."""
    weights_sqnr_db: float | None = None
    """Power of the sums against the noise that rounded weights alone add to them, in dB, estimated from calibration;
    None where weights are exact."""
    fell_back: bool = False
    """Whether all rows are Fixed-8 because the wanted mixture was too coarse for the layer."""
    sqnr_db: float | None = None
    """Signal to quantization noise of the integer output against the float value, in dB."""
    tail_mass: list[float] = dataclasses.field(default_factory=list)
    """Per head: mean softmax probability that falls on keys whose table entry is 0."""


@dataclasses.dataclass
class Report:
    """Layers in execution order, and the rows of all of them by scheme."""

    name: str
    images: int
    """Calibration images."""
    layers: list[Layer]

    @property
    def schemes(self) -> dict[str, int]:
        """Weight rows of the whole graph by scheme."""
        total: dict[str, int] = {}
        for layer in self.layers:
            for scheme, count in layer.schemes.items():
                total[scheme] = total.get(scheme, 0) + count
        return total

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(dataclasses.asdict(self) | {"schemes": self.schemes}, indent=2)

    def rows(self) -> list[dict[str, str]]:
        """One row of printable cells per layer."""
        return [
            {
                "layer": layer.name,
                "op": layer.op,
                "SQNR dB": "" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}",
                "weights dB": "" if layer.weights_sqnr_db is None else f"{layer.weights_sqnr_db:.1f}",
                "rows": ("fell back: " if layer.fell_back else "")
                + " ".join(f"{scheme}:{count}" for scheme, count in layer.schemes.items()),
                "clipped": "" if layer.clipped is None else f"{layer.clipped:.3%}",
                "acc bits": str(layer.accumulator_bits or ""),
                "grown": str(layer.grown_rows or ""),
                "tail mass": " ".join(f"{mass:.2%}" for mass in layer.tail_mass),
            }
            for layer in self.layers
        ]


def measure(
    report: Report, graph: Graph, float_graph: FloatGraph, images, codes: np.ndarray, execute: Execute
):
    """Fill in SQNR and tail mass from preprocessed `images` (torch, N, H, W, C) and the input codes of the same."""
    real = float_graph.run(images, keep=True)
    integer = execute(graph, codes)
    operators = {operator.name: operator for operator in graph.operators}
    for layer in report.layers:
        operator = operators[layer.name]
        tensor = graph.tensor(operator.output)
        if layer.output in real:
            wanted = real[layer.output].double().numpy().reshape(len(codes), -1)
            got = (integer[tensor.name].astype(np.float64) - tensor.zero_point) * tensor.scale
            noise = ((got.reshape(len(codes), -1) - wanted) ** 2).sum()
            layer.sqnr_db = (
                float(10 * np.log10((wanted**2).sum() / max(noise, 1e-300))) if wanted.any() else None
            )
        if isinstance(operator, Attention):
            layer.tail_mass = _tail_mass(integer[f"{layer.name}/logits"], integer[f"{layer.name}/exp"])


def _tail_mass(logits: np.ndarray, exp: np.ndarray) -> list[float]:
    weights = np.exp((logits - logits.max(axis=-1, keepdims=True)) * EXP_STEP)
    probability = weights / weights.sum(axis=-1, keepdims=True)
    return [float(mass) for mass in (probability * (exp == 0)).sum(axis=-1).mean(axis=(0, 2))]
