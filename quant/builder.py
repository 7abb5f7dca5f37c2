"""The integer graph while it is built: ranges and types of tensors, and what a drain does."""

from __future__ import annotations

import numpy as np
import torch

from ..arch import numerics
from ..arch.graph import Constant, Drain, Elementwise, Operator, Residual, Second, Tensor
from .bits import activation_classes
from .calibrate import Histogram, Range, Statistics
from .floatgraph import ACTIVATIONS, FloatGraph
from .functions import problems, table_values
from .report import Layer
from .units import Unit, fold, partners, roots, wanted

__all__ = ["CONSTANT_LIMIT", "Builder", "scaled"]

CONSTANT_LIMIT = 2.0**46
"""Bound on C, so that acc * m + C stays within 48 bits."""
_EPS_LIMIT = 2.0**46
"""Bound on eps_I = D^2 eps / s_x^2, which has 48 bits with its sign."""
_TABLE_BITS = 10


def scaled(
    scales: np.ndarray, offsets: np.ndarray, sums: np.ndarray, zero_point: int
) -> dict[str, np.ndarray]:
    """m, n and C for v = scales * (acc - sums) + offsets + zero_point, one entry per output.

    Every shift is the largest whose constant leaves acc * m + C within 48 bits.
    """
    m, n, constant = [], [], []
    for scale, offset, total in zip(scales, offsets, sums, strict=True):
        for n_max in range(39 if zero_point else 47, 0, -1):
            m_i, n_i = numerics.scale_to_mn(float(scale), n_max=n_max)
            bias = round(float(offset + zero_point) * 2.0**n_i) - int(total) * m_i
            if abs(bias) < CONSTANT_LIMIT:
                break
        m.append(m_i)
        n.append(n_i)
        constant.append(numerics.round_constant(bias, 1, n_i) if n_i else bias)
    return {"m": np.array(m, np.uint16), "n": np.array(n, np.uint8), "C": np.array(constant, np.int64)}


class Builder:
    """Turns units into operators, tensors and constants, in order."""

    def __init__(self, graph: FloatGraph, statistics: Statistics, mixture, drain: int, bits: dict[str, int]):
        self.graph, self.statistics = graph, statistics
        self.mixture, self.drained_at_once, self.bits = mixture, drain, bits
        self.units = fold(graph)
        self.root = roots(self.units)
        self.partners = partners(self.units)
        self.classes = activation_classes(self.units, self.root)
        self.wants, self.symmetric = wanted(self.units, graph.nodes[-1].name)
        self.shapes = {"input": graph.input_shape} | {node.name: node.shape for node in graph.nodes}
        self.least_scales = self._least_scales()
        self.ranges: dict[tuple[str, str], Range] = {}
        self.written: dict[tuple[str, str], str] = {}
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.constants: dict[str, np.ndarray] = {}
        self.layers: list[Layer] = []
        self.problems: list[str] = []
        """Layers whose function cannot be computed, a line each."""
        self.follower = None
        """A `compensate.Follower` where layers make up for the errors of those before them."""

    def range(self, value: str, dtype: str) -> Range:
        """The quantized range of a float value, shared with everything that moves its codes or stands beside it
        in a concatenation."""
        source = self.root[value]
        if (source, dtype) not in self.ranges:
            together = self.partners.get(source, (source,))
            histogram = Histogram.merged([self.statistics.histograms[name] for name in together])
            classes = {self.classes.get(name, "other") for name in together}
            bits = 8 if "input" in together else max(self.bits[name] for name in classes)
            if dtype == "s16":
                found = histogram.wide(max(self.least_scales.get(name, 0.0) for name in together))
            elif self.symmetric.isdisjoint(together):
                found = histogram.affine(bits)
            else:
                found = histogram.symmetric(bits)
            self.ranges |= {(name, dtype): found for name in together}
        return self.ranges[source, dtype]

    def _least_scales(self) -> dict[str, float]:
        """For roots that a LayerNorm reads: the least scale at which its eps_I fits. Finer steps say nothing, since eps
        outweighs the variance of so small values."""
        least: dict[str, float] = {}
        for unit in self.units:
            if unit.anchor.kind == "layernorm":
                source = self.root[unit.anchor.inputs[0]]
                channels, eps = unit.anchor.shape[-1], float(unit.anchor.attrs["eps"])
                least[source] = max(least.get(source, 0.0), channels * (eps / _EPS_LIMIT) ** 0.5)
        return least

    def declare(self, value: str, dtype: str, name: str, shape: tuple[int, ...] | None = None) -> str:
        """A tensor that holds float value `value`."""
        found = self.range(value, dtype)
        bits = 16 if dtype == "s16" else (found.hi - found.lo).bit_length()
        self.tensors[name] = Tensor(
            name=name,
            shape=tuple(shape or self.shapes[value]),
            dtype=dtype,
            scale=found.scale,
            zero_point=found.zero_point,
            bits=bits,
        )
        self.written[value, dtype] = name
        return name

    def read(self, value: str, dtype: str) -> str:
        """The tensor of a value in the wanted type; a conversion is emitted where it was written in the other."""
        if (value, dtype) in self.written:
            return self.written[value, dtype]
        other = "s8" if dtype == "s16" else "s16"
        source, before, after = self.written[value, other], self.range(value, other), self.range(value, dtype)
        name = f"{value}.{dtype}"
        self.store(
            name,
            scaled(
                np.array([before.scale / after.scale]),
                np.zeros(1),
                np.array([before.zero_point]),
                after.zero_point,
            ),
        )
        output = self.declare(value, dtype, name, self.tensors[source].shape)
        self.emit(
            Elementwise(name=name, input=source, output=output, drain=Drain(lo=after.lo, hi=after.hi)), value
        )
        return output

    def emit(self, operator: Operator, value: str, **figures) -> None:
        self.operators.append(operator)
        dtype = self.tensors[operator.output].dtype
        clipped = self.statistics.histograms[value].clipped(self.range(value, dtype))
        self.layers.append(Layer(operator.name, operator.op, value, clipped, **figures))

    def store(self, name: str, fields: dict[str, np.ndarray]) -> None:
        self.constants |= {f"{name}/{field}": array for field, array in fields.items()}

    def drain(self, unit: Unit, scales: np.ndarray, bias: np.ndarray, sums: np.ndarray) -> tuple[str, Drain]:
        """The output tensor and drain of a unit whose real result is scales * (acc - sums) + bias."""
        name, wants = unit.anchor.name, self.wants[unit.out]
        dtype = "s16" if "s16" in wants and not unit.table else "s8"
        found = self.range(unit.out, dtype)
        shape = unit.anchor.shape if unit.flattened else self.shapes[unit.out]
        value = f"{unit.out}.image" if unit.flattened else unit.out
        if unit.table:
            table, index = self._table(unit, found)
            self.constants[f"{name}/table"] = table
            fields = scaled(scales / index.scale, bias / index.scale, sums, index.zero_point)
        else:
            fields = scaled(scales / found.scale, bias / found.scale, sums, found.zero_point)
        self.store(name, fields)
        if unit.flattened:
            self.root[value], self.shapes[value] = self.root[unit.out], shape
        residual = self._residual(unit, found, bias, shape)
        output = self.declare(value, dtype, value)
        second = None
        if dtype == "s16" and "s8" in wants:
            low = self.range(unit.out, "s8")
            factor = scaled(np.array([found.scale / low.scale]), np.zeros(1), np.zeros(1), low.zero_point)
            second = Second(
                tensor=self.declare(value, "s8", f"{value}.s8"),
                m=int(factor["m"][0]),
                n=int(factor["n"][0]),
                constant=int(factor["C"][0]),
                lo=low.lo,
                hi=low.hi,
            )
        lo, hi = self._clamp(unit, found)
        return output, Drain(lo=lo, hi=hi, table=unit.table, residual=residual, second=second)

    @staticmethod
    def _clamp(unit: Unit, found: Range) -> tuple[int, int]:
        lo, hi = found.lo, found.hi
        if unit.act is not None and not unit.table:
            lo = max(lo, found.zero_point)
            if unit.act.attrs["kind"] == "relu6":
                cap = float(unit.act.params["cap"].max()) if "cap" in unit.act.params else 6
                hi = min(hi, found.zero_point + round(cap / found.scale))
        return lo, hi

    def _table(self, unit: Unit, found: Range) -> tuple[np.ndarray, Range]:
        """The activation as a table over a 10-bit index that spans where the output's code changes."""

        def codes(y: np.ndarray) -> np.ndarray:
            return numerics.clamp(
                np.rint(y / found.scale).astype(np.int64) + found.zero_point, found.lo, found.hi
            )

        kind = unit.act.attrs["kind"]
        histogram = self.statistics.histograms[unit.act.inputs[0]]
        grid = np.linspace(histogram.minimum, histogram.maximum, 8192)
        changes = np.flatnonzero(np.diff(codes(ACTIVATIONS[kind](torch.from_numpy(grid)).numpy())))
        if len(changes):
            grid = grid[max(changes[0] - 1, 0) : changes[-1] + 3]
        low, high = float(grid[0]), float(grid[-1])
        half = 1 << (_TABLE_BITS - 1)
        scale = max(high - low, 1e-6) / (2 * half - 1)
        index = Range(scale, round(-half - low / scale), -half, half - 1)
        inputs = np.arange(-half, half) - index.zero_point
        self.problems += problems(unit.act.name, kind, inputs, scale)
        return codes(table_values(kind, inputs, scale)).astype(np.int8), index

    def _residual(
        self, unit: Unit, found: Range, bias: np.ndarray, shape: tuple[int, ...]
    ) -> Residual | None:
        if unit.residual is not None:
            tensor = self.read(unit.residual, "s16")
        elif unit.constant is not None:
            tensor = self._constant(unit, bias, shape)
        else:
            return None
        m, n = numerics.scale_to_mn(self.tensors[tensor].scale / found.scale)
        return Residual(tensor=tensor, m=m, n=n)

    def _constant(self, unit: Unit, bias: np.ndarray, shape: tuple[int, ...]) -> str:
        rows = np.broadcast_to(unit.constant, (int(np.prod(shape[:-1])), shape[-1])).copy()
        rows[: unit.prefix] -= bias
        scale = max(float(np.abs(rows).max()), 1e-6) / 32767
        name = f"{unit.out}.constant"
        codes = np.rint(rows / scale).astype(np.int16).reshape(shape)
        self.tensors[name] = Tensor(name=name, shape=tuple(shape), dtype="s16", scale=scale, bits=16)
        self.constants[f"{name}/value"] = codes
        self.operators.append(Constant(name=name, output=name))
        return name
