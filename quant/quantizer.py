"""Post-training quantization: a float graph and calibration images in, an integer graph and a report out."""

from __future__ import annotations

import numpy as np
import torch

from ..arch import numerics
from ..arch.graph import (
    Attention,
    AvgPool,
    Constant,
    Conv,
    Drain,
    Elementwise,
    Graph,
    LayerNorm,
    Linear,
    MaxPool,
    Operator,
    Preprocessing,
    Reshape,
    Residual,
    Second,
    Slice,
    Tensor,
)
from ..arch.schemes import Scheme
from .calibrate import Range, Statistics, collect, preprocess
from .floatgraph import ACTIVATIONS, FloatGraph
from .report import Execute, Layer, Report, measure
from .rows import accumulator_range, check_mixture, quantize_rows
from .units import QuantizeError, Unit, fold, rewrite, roots, wanted

__all__ = ["Layer", "QuantizeError", "Report", "quantize"]

_CONSTANT_LIMIT = 2.0**46
"""Bound on C, so that acc * m + C stays within 48 bits."""
_IDENTITY = (1 << 15, 15)
_TABLE_BITS = 10


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
    builder = _Builder(model, collect(model, real), mixture, drain, activation_bits)
    output = builder.build()
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


def _scaled(
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
            if abs(bias) < _CONSTANT_LIMIT:
                break
        m.append(m_i)
        n.append(n_i)
        constant.append(numerics.round_constant(bias, 1, n_i) if n_i else bias)
    return {"m": np.array(m, np.uint16), "n": np.array(n, np.uint8), "C": np.array(constant, np.int64)}


class _Builder:
    """Turns units into operators, tensors and constants, in order."""

    def __init__(self, graph: FloatGraph, statistics: Statistics, mixture, drain: int, bits: int):
        self.graph, self.statistics = graph, statistics
        self.mixture, self.drain_count, self.bits = mixture, drain, bits
        self.units = fold(graph)
        self.root = roots(self.units)
        self.wants, self.symmetric = wanted(self.units, graph.nodes[-1].name)
        self.shapes = {"input": graph.input_shape} | {node.name: node.shape for node in graph.nodes}
        self.ranges: dict[tuple[str, str], Range] = {}
        self.written: dict[tuple[str, str], str] = {}
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.constants: dict[str, np.ndarray] = {}
        self.layers: list[Layer] = []

    def build(self) -> str:
        """Emit everything; returns the output tensor's name."""
        self.declare("input", "s8", "input")
        for unit in self.units:
            getattr(self, f"_{unit.anchor.kind}")(unit)
        output = self.graph.nodes[-1].name
        return self.written.get((output, "s16")) or self.written[output, "s8"]

    def range(self, value: str, dtype: str) -> Range:
        """The quantized range of a float value, shared with everything that moves its codes."""
        source = self.root[value]
        if (source, dtype) not in self.ranges:
            histogram = self.statistics.histograms[source]
            bits = 8 if source == "input" else self.bits
            if dtype == "s16":
                found = histogram.wide()
            else:
                found = histogram.symmetric(bits) if source in self.symmetric else histogram.affine(bits)
            self.ranges[source, dtype] = found
        return self.ranges[source, dtype]

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
        self._constants(
            name,
            _scaled(
                np.array([before.scale / after.scale]),
                np.zeros(1),
                np.array([before.zero_point]),
                after.zero_point,
            ),
        )
        output = self.declare(value, dtype, name, self.tensors[source].shape)
        self._emit(
            Elementwise(name=name, input=source, output=output, drain=Drain(lo=after.lo, hi=after.hi)), value
        )
        return output

    def _emit(self, operator: Operator, value: str, **figures) -> None:
        self.operators.append(operator)
        dtype = self.tensors[operator.output].dtype
        clipped = self.statistics.histograms[value].clipped(self.range(value, dtype))
        self.layers.append(Layer(operator.name, operator.op, value, clipped, **figures))

    def _constants(self, name: str, fields: dict[str, np.ndarray]) -> None:
        self.constants |= {f"{name}/{field}": array for field, array in fields.items()}

    def _drain(self, unit: Unit, scales: np.ndarray, bias: np.ndarray, sums: np.ndarray) -> tuple[str, Drain]:
        """The output tensor and drain of a unit whose real result is scales * (acc - sums) + bias."""
        name, wants = unit.anchor.name, self.wants[unit.out]
        dtype = "s16" if "s16" in wants and not unit.table else "s8"
        found = self.range(unit.out, dtype)
        shape = unit.anchor.shape if unit.flattened else self.shapes[unit.out]
        value = f"{unit.out}.image" if unit.flattened else unit.out
        if unit.table:
            table, index = self._table(unit, found)
            self.constants[f"{name}/table"] = table
            fields = _scaled(scales / index.scale, bias / index.scale, sums, index.zero_point)
        else:
            fields = _scaled(scales / found.scale, bias / found.scale, sums, found.zero_point)
        self._constants(name, fields)
        if unit.flattened:
            self.root[value], self.shapes[value] = self.root[unit.out], shape
        residual = self._residual(unit, found, bias, shape)
        output = self.declare(value, dtype, value)
        second = None
        if dtype == "s16" and "s8" in wants:
            low = self.range(unit.out, "s8")
            factor = _scaled(np.array([found.scale / low.scale]), np.zeros(1), np.zeros(1), low.zero_point)
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
                hi = min(hi, found.zero_point + round(6 / found.scale))
        return lo, hi

    def _table(self, unit: Unit, found: Range) -> tuple[np.ndarray, Range]:
        """The activation as a table over a 10-bit index that spans where the output's code changes."""
        function = ACTIVATIONS[unit.act.attrs["kind"]]

        def codes(real: np.ndarray) -> np.ndarray:
            y = function(torch.from_numpy(np.asarray(real, dtype=np.float64))).numpy()
            return numerics.clamp(
                np.rint(y / found.scale).astype(np.int64) + found.zero_point, found.lo, found.hi
            )

        histogram = self.statistics.histograms[unit.act.inputs[0]]
        grid = np.linspace(histogram.minimum, histogram.maximum, 8192)
        changes = np.flatnonzero(np.diff(codes(grid)))
        if len(changes):
            grid = grid[max(changes[0] - 1, 0) : changes[-1] + 3]
        low, high = float(grid[0]), float(grid[-1])
        half = 1 << (_TABLE_BITS - 1)
        scale = max(high - low, 1e-6) / (2 * half - 1)
        index = Range(scale, round(-half - low / scale), -half, half - 1)
        return codes((np.arange(-half, half) - index.zero_point) * scale).astype(np.int8), index

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

    def _weighted(self, unit: Unit) -> tuple[str, Drain, dict]:
        """Everything that linear and convolution share: rows, corrected bias, drain."""
        node = unit.anchor
        source = self.read(node.inputs[0], "s8")
        x = self.range(node.inputs[0], "s8")
        weight = node.params["weight"].detach().double().numpy()
        moments, groups = self.statistics.moments[node.name], int(node.attrs.get("groups", 1))
        flat = weight.reshape(groups, weight.shape[0] // groups, -1)
        rows = quantize_rows(
            flat,
            moments.second,
            self.statistics.fisher[node.name],
            self.mixture,
            self.drain_count,
            x.lo,
            x.hi,
        )
        error = flat - (rows.codes * rows.scale[:, None]).reshape(flat.shape)
        bias = node.params["bias"].detach().double().numpy()
        bias = bias + np.einsum("gok,gk->go", error, moments.first).reshape(-1)
        self.constants[f"{node.name}/weight"] = rows.codes.reshape(weight.shape).astype(np.int8)
        self.constants[f"{node.name}/scheme"] = rows.schemes
        sums = x.zero_point * rows.codes.sum(axis=1)
        output, drain = self._drain(unit, rows.scale * x.scale, bias, sums)
        least, greatest = accumulator_range(rows.codes, x.lo, x.hi)
        figures = {
            "schemes": {
                Scheme(s).name: int(c)
                for s, c in zip(*np.unique(rows.schemes, return_counts=True), strict=True)
            },
            "accumulator_bits": int(max(-least.min(), greatest.max(), 1)).bit_length() + 1,
            "grown_rows": rows.grown,
        }
        return source, (output, drain), figures

    def _linear(self, unit: Unit) -> None:
        source, (output, drain), figures = self._weighted(unit)
        self._emit(
            Linear(name=unit.anchor.name, input=source, output=output, drain=drain), unit.out, **figures
        )

    def _conv(self, unit: Unit) -> None:
        source, (output, drain), figures = self._weighted(unit)
        node = unit.anchor
        operator = Conv(
            name=node.name,
            input=source,
            output=output,
            stride=tuple(node.attrs["stride"]),
            padding=tuple(node.attrs["padding"]),
            groups=int(node.attrs["groups"]),
            prefix=unit.prefix,
            drain=drain,
        )
        self._emit(operator, unit.out, **figures)
        if unit.flattened:
            image = f"{unit.out}.image"
            for dtype in ("s16", "s8"):
                if (image, dtype) in self.written:
                    name = self.declare(
                        unit.out,
                        dtype,
                        unit.out if (unit.out, "s16") not in self.written else f"{unit.out}.s8",
                    )
                    self._emit(
                        Reshape(name=f"{name}.reshape", input=self.written[image, dtype], output=name),
                        unit.out,
                    )

    def _elementwise(self, unit: Unit, dtype: str) -> None:
        node = unit.anchor
        source = self.read(node.inputs[0], dtype)
        x = self.range(node.inputs[0], dtype)
        output, drain = self._drain(unit, np.array([x.scale]), np.zeros(1), np.array([x.zero_point]))
        self._emit(Elementwise(name=node.name, input=source, output=output, drain=drain), unit.out)

    def _add(self, unit: Unit) -> None:
        self._elementwise(unit, "s16")

    def _act(self, unit: Unit) -> None:
        if not unit.table:
            self._elementwise(unit, "s8")
            return
        node = unit.anchor
        source, x = self.read(node.inputs[0], "s8"), self.range(node.inputs[0], "s8")
        found = self.range(unit.out, "s8")
        real = torch.from_numpy((np.arange(-128, 128) - x.zero_point) * x.scale)
        y = np.rint(ACTIVATIONS[node.attrs["kind"]](real).numpy() / found.scale).astype(np.int64)
        table = numerics.clamp(y + found.zero_point, found.lo, found.hi).astype(np.int8)
        m, n = _IDENTITY
        self._constants(
            node.name,
            {
                "m": np.array([m], np.uint16),
                "n": np.array([n], np.uint8),
                "C": np.array([1 << (n - 1)], np.int64),
                "table": table,
            },
        )
        output = self.declare(unit.out, "s8", unit.out)
        drain = Drain(lo=found.lo, hi=found.hi, table=True)
        self._emit(Elementwise(name=node.name, input=source, output=output, drain=drain), unit.out)

    def _avgpool(self, unit: Unit) -> None:
        node = unit.anchor
        source, x = self.read(node.inputs[0], "s8"), self.range(node.inputs[0], "s8")
        count = int(np.prod(node.attrs["kernel"]))
        output, drain = self._drain(
            unit, np.array([x.scale / count]), np.zeros(1), np.array([count * x.zero_point])
        )
        operator = AvgPool(name=node.name, input=source, output=output, drain=drain, **_window(node))
        self._emit(operator, unit.out)

    def _maxpool(self, unit: Unit) -> None:
        node = unit.anchor
        source = self.read(node.inputs[0], "s8")
        output = self.declare(unit.out, "s8", unit.out)
        self._emit(MaxPool(name=node.name, input=source, output=output, **_window(node)), unit.out)

    def _slice(self, unit: Unit) -> None:
        fields = {"start": int(unit.anchor.attrs["start"]), "count": int(unit.anchor.attrs["count"])}
        self._move(unit, Slice, fields)

    def _reshape(self, unit: Unit) -> None:
        if self.shapes[unit.anchor.inputs[0]][-1] != unit.anchor.shape[-1]:
            raise QuantizeError(
                f"{unit.anchor.name}: flattening must be followed by a linear layer alone, not by other readers"
            )
        self._move(unit, Reshape, {})

    def _move(self, unit: Unit, kind: type, fields: dict) -> None:
        wants = sorted(self.wants[unit.out])
        for dtype in wants:
            source = self.read(unit.anchor.inputs[0], dtype)
            name = unit.out if len(wants) == 1 or dtype == "s16" else f"{unit.out}.s8"
            output = self.declare(unit.out, dtype, name)
            self._emit(kind(name=name, input=source, output=output, **fields), unit.out)

    def _layernorm(self, unit: Unit) -> None:
        node = unit.anchor
        source, x = self.read(node.inputs[0], "s16"), self.range(node.inputs[0], "s16")
        y = self.range(unit.out, "s8")
        gamma, beta = (node.params[key].detach().double().numpy() for key in ("gamma", "beta"))
        gain, offset = gamma / (1024 * y.scale), beta / y.scale + y.zero_point
        n = int(np.clip(np.floor(np.log2(32766 / max(float(np.abs(gain).max()), 1e-12))), 1, 38))
        while n > 1 and np.abs(offset).max() * 2.0**n >= _CONSTANT_LIMIT:
            n -= 1
        channels = self.shapes[node.inputs[0]][-1]
        g = numerics.clamp(np.rint(gain * 2.0**n).astype(np.int64), -32768, 32767).astype(np.int16)
        b = np.rint(offset * 2.0**n).astype(np.int64) + (1 << (n - 1))
        self._constants(node.name, {"g": g, "b": b})
        output = self.declare(unit.out, "s8", unit.out)
        eps = max(1, round(channels**2 * float(node.attrs["eps"]) / x.scale**2))
        operator = LayerNorm(name=node.name, input=source, output=output, n=n, eps=eps, lo=y.lo, hi=y.hi)
        self._emit(operator, unit.out)

    def _attention(self, unit: Unit) -> None:
        node = unit.anchor
        heads = int(node.attrs["heads"])
        q, k, v = (self.range(name, "s8") for name in node.inputs)
        y = self.range(unit.out, "s8")
        logits = _scaled(
            np.full(heads, q.scale * k.scale * float(node.attrs["scale"]) / numerics.EXP_STEP),
            np.zeros(heads),
            np.zeros(heads),
            0,
        )
        m2, n2 = numerics.scale_to_mn(v.scale / y.scale, n_max=30)
        fields = {"m2": np.full(heads, m2, np.uint16), "n2": np.full(heads, n2, np.uint8)}
        self._constants(node.name, logits | fields | {"exp": numerics.exp_table().astype(np.uint8)})
        source, keys, values = (self.read(name, "s8") for name in node.inputs)
        output = self.declare(unit.out, "s8", unit.out)
        operator = Attention(
            name=node.name,
            input=source,
            keys=keys,
            values=values,
            output=output,
            heads=heads,
            lo=y.lo,
            hi=y.hi,
        )
        self._emit(operator, unit.out)


def _window(node) -> dict[str, tuple[int, ...]]:
    return {key: tuple(node.attrs[key]) for key in ("kernel", "stride", "padding")}
