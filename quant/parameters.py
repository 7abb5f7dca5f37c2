"""Parameters for an integer graph, and the integers of its operators that follow from them.

Parameters start where the graph stands, and are relative to it: changes by a few thousandths are small for all of
them, so that one learning rate fits. All are float64, except for weights.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from ..arch import numerics
from ..arch.graph import (
    Attention,
    AvgPool,
    Concat,
    Constant,
    Conv,
    Elementwise,
    Gather,
    Graph,
    LayerNorm,
    Linear,
    MaxPool,
    Multiply,
    Operator,
    Reshape,
    Slice,
    Tensor,
    drained,
    reads,
)
from . import straight as st

__all__ = ["Parameters", "key_of", "limits"]

_ACTIVITY = 0.125
"""Typical magnitude of a code as a share of its range: the unit of zero points, and that of biases by the codes of the input."""


def key_of(name: str) -> str:
    """The name of a tensor or operator as torch allows it for parameters."""
    return name.replace(".", ":")


class Parameters(nn.Module):
    """What is learned of `graph`, see `trainable`."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph
        self.group = _groups(graph)
        self.register_buffer("origin", torch.zeros((), dtype=torch.float64), persistent=False)
        fixed = {graph.input} | {t.name for t in graph.tensors if t.dtype == "s16"}
        fixed = {self.group[name] for name in fixed}
        self.steps, self.zeros = nn.ParameterDict(), nn.ParameterDict()
        self.weights, self.gains, self.offsets = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        used = {name for operator in graph.operators for name in reads(operator)} | {graph.output}
        for root in sorted({self.group[name] for name in used} - fixed):
            tensor = graph.tensor(root)
            lo, hi = limits(tensor)
            self.steps[key_of(root)] = nn.Parameter(torch.zeros((), dtype=torch.float64))
            if tensor.zero_point and lo < tensor.zero_point < hi:
                self.zeros[key_of(root)] = nn.Parameter(torch.zeros((), dtype=torch.float64))
        for operator in graph.operators:
            self._prepare(operator)

    # -- parameters ---------------------------------------------------------------------------------------------

    def _hold(self, operator: Operator, **arrays) -> None:
        for field, array in arrays.items():
            self.register_buffer(
                f"{key_of(operator.name)}/{field}", torch.as_tensor(np.asarray(array)), persistent=False
            )

    def _held(self, operator: Operator, field: str) -> torch.Tensor:
        return getattr(self, f"{key_of(operator.name)}/{field}")

    def _prepare(self, operator: Operator) -> None:
        """Parameters of an operator, from its integers: real values are recovered so that nothing changes."""
        graph, key = self.graph, key_of(operator.name)

        def constant(field: str) -> np.ndarray:
            return graph.constant(operator, field).astype(np.float64)

        if isinstance(operator, Constant):
            tensor = graph.tensor(operator.output)
            real = (constant("value") - tensor.zero_point) * tensor.scale
            unit = max(float(np.sqrt((real**2).mean())), tensor.scale)
            self._hold(operator, start=real, unit=unit)
            self.weights[key] = nn.Parameter(torch.zeros(tensor.shape, dtype=torch.float64))
        elif isinstance(operator, LayerNorm):
            y = graph.tensor(operator.output)
            gain = constant("g") * 2.0**-operator.n
            offset = (constant("b") - 2.0 ** (operator.n - 1)) * 2.0**-operator.n - y.zero_point
            unit = max(float(np.abs(gain).mean()) * 1024 * y.scale, 1e-12)
            self._hold(operator, gain=gain * 1024 * y.scale, offset=offset * y.scale, unit=unit)
            for part in (self.gains, self.offsets):
                part[key] = nn.Parameter(torch.zeros(y.channels, dtype=torch.float64))
        elif isinstance(operator, Attention):
            q, k, v = (graph.tensor(name) for name in reads(operator))
            ratio = constant("m") * 2.0 ** -constant("n") / (q.scale * k.scale)
            shares = constant("m2") * 2.0 ** -constant("n2") * graph.tensor(operator.output).scale / v.scale
            self._hold(operator, ratio=ratio, shares=shares, exp=constant("exp").astype(np.float32))
            if operator.bias:
                self._hold(operator, bias=graph.constant(operator, "bias").astype(np.int64))
        elif isinstance(operator, Gather):
            self._hold(operator, index=graph.constant(operator, "index").astype(np.int64))
        if drained(operator) is not None:
            self._prepare_drain(operator, *(constant(field) for field in ("m", "n", "C")))

    def _prepare_drain(self, operator, m: np.ndarray, n: np.ndarray, constant: np.ndarray) -> None:
        key, factor = key_of(operator.name), m * 2.0**-n
        output, inputs = self._step0(operator), self._input_step0(operator)
        gain = factor * output / inputs
        codes = None
        if isinstance(operator, Linear | Conv):
            codes = self.graph.constant(operator, "weight").astype(np.float64)
            codes = codes.reshape(len(codes), -1)
        zero = 0 if operator.drain.table else self.graph.tensor(operator.output).zero_point
        sums = self._sums(operator, None if codes is None else torch.from_numpy(codes).sum(1)).numpy()
        offset = ((constant - 2.0 ** (n - 1) + sums * m) * 2.0**-n - zero) * output
        self._hold(operator, gain=gain, offset=offset)
        if codes is not None:
            gain = np.where(gain > 0, gain, gain[gain > 0].min(initial=1.0))
            size = np.sqrt((codes**2).mean(axis=1))
            size = np.where(size > 0, size, max(size.mean(), 1e-3))
            weight = torch.from_numpy(codes / size[:, None]).float()
            seen = math.sqrt(codes.shape[1]) * _activity(self.graph.tensor(operator.input))
            unit = inputs * gain * size * seen
            scheme = self.graph.constant(operator, "scheme").astype(np.int64)
            self._hold(operator, size=size.astype(np.float32)[:, None], unit=unit, scheme=scheme)
            self.weights[key] = nn.Parameter(weight)
            self.gains[key] = nn.Parameter(torch.zeros(len(codes), dtype=torch.float64))
            self.offsets[key] = nn.Parameter(torch.zeros(len(codes), dtype=torch.float64))
        if operator.drain.table:
            y = self.graph.tensor(operator.output)
            table = self.graph.constant(operator, "table").clip(operator.drain.lo, operator.drain.hi)
            curve = (_curve(table.astype(np.float64)) - y.zero_point) * y.scale
            self._hold(operator, curve=curve, slope=_slope(table.astype(np.float64)) * y.scale)
        else:
            y = self.graph.tensor(operator.output)
            self._hold(operator, cut=(operator.drain.hi - y.zero_point) * y.scale)

    def _step0(self, operator: Operator) -> float:
        return 1.0 if operator.drain.table else self.graph.tensor(operator.output).scale

    def _input_step0(self, operator: Operator) -> float:
        step = self.graph.tensor(operator.input).scale
        return step * (self.graph.tensor(operator.other).scale if isinstance(operator, Multiply) else 1.0)

    def step(self, name: str) -> torch.Tensor:
        """The step of a tensor, float64, with gradient."""
        start = self.graph.tensor(name).scale
        key = key_of(self.group[name])
        return start * torch.exp(self.steps[key]) if key in self.steps else self._number(start)

    def zero(self, name: str) -> torch.Tensor:
        """The zero point of a tensor, a whole float64, with gradient."""
        tensor, key = self.graph.tensor(name), key_of(self.group[name])
        if key not in self.zeros:
            return self._number(tensor.zero_point)
        real = (tensor.zero_point + _activity(tensor) * self.zeros[key]).clamp(*limits(tensor))
        return st.straight(real, real.round())

    def _number(self, value: float) -> torch.Tensor:
        return torch.full_like(self.origin, float(value))

    # -- integers -----------------------------------------------------------------------------------------------

    def _codes(self, operator: Linear | Conv) -> torch.Tensor:
        """Weight codes (O, K) with gradient to weights and row steps."""
        key = key_of(operator.name)
        step = torch.exp(self.gains[key]).float().unsqueeze(1)
        return st.nearest(
            self.weights[key] * self._held(operator, "size") / step, self._held(operator, "scheme")
        )

    def _sums(self, operator: Operator, rows: torch.Tensor | None) -> torch.Tensor:
        """What the input's zero point adds to each accumulator; `rows` are the sums of weight codes."""
        zero = self.zero(operator.input).detach()
        match operator:
            case Linear() | Conv():
                return rows.to(zero.device) * zero
            case AvgPool():
                return zero.reshape(1) * math.prod(operator.kernel)
            case Elementwise():
                return zero.reshape(1)
        return torch.zeros_like(zero.reshape(1))

    def _drain_fields(self, operator: Operator, codes: torch.Tensor | None):
        """Real factor and offset (with gradient) of the output's code, and the integers m, n, C and sums."""
        key, table = key_of(operator.name), operator.drain.table
        gain, offset = self._held(operator, "gain"), self._held(operator, "offset")
        if codes is not None:
            gain = gain * torch.exp(self.gains[key])
            offset = offset + self.offsets[key] * self._held(operator, "unit")
        inputs = self.step(operator.input)
        if isinstance(operator, Multiply):
            inputs = inputs * self.step(operator.other)
        output = self._number(1) if table else self.step(operator.output)
        zero = self._number(0) if table else self.zero(operator.output)
        sums = self._sums(operator, None if codes is None else codes.detach().double().sum(1))
        factor, shift = gain * inputs / output, offset / output
        integers = st.scaled(factor.detach(), shift.detach(), sums, int(zero.detach()))
        return factor, shift + zero, (*integers, sums)

    def _table(self, operator: Operator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of every index of a table: the output's code, its real value in codes and that one's slope, with gradient."""
        step, lo, hi = self.step(operator.output), operator.drain.lo, operator.drain.hi
        real = self._held(operator, "curve") / step + self.zero(operator.output)
        return real.detach().round().clamp(lo, hi), real.clamp(lo, hi), self._held(operator, "slope") / step

    def _limits(self, operator: Operator) -> tuple[int, int]:
        """What a drain without table clamps to: rectifiers follow zero point and step."""
        y, drain = self.graph.tensor(operator.output), operator.drain
        lo, hi = limits(y)
        zero = int(self.zero(y.name).detach())
        if drain.hi < hi:
            hi = min(hi, zero + round(float(self._held(operator, "cut") / self.step(y.name).detach())))
        return (max(lo, zero) if drain.lo == y.zero_point else drain.lo), hi

    def _residual(self, operator: Operator) -> tuple[torch.Tensor, int, int]:
        """The real ratio of the residual's step to the output's (with gradient), and its m and n."""
        ratio = self.step(operator.drain.residual.tensor) / self.step(operator.output)
        return ratio, *numerics.scale_to_mn(float(ratio.detach()))

    def _second(self, operator: Operator) -> tuple[torch.Tensor, ...]:
        """m, n and C of the second output."""
        second = operator.drain.second.tensor
        factor = (self.step(operator.output) / self.step(second)).detach().reshape(1)
        nothing = torch.zeros_like(factor)
        return st.scaled(factor, nothing, nothing, int(self.zero(second).detach()))

    def _normalization(self, operator: LayerNorm):
        """Gain and offset in codes of the output (with gradient), and the integers g, b and n."""
        key, unit = key_of(operator.name), self._held(operator, "unit")
        step = self.step(operator.output)
        gain = (self._held(operator, "gain") + self.gains[key] * unit) / step
        offset = (self._held(operator, "offset") + self.offsets[key] * unit) / step + self.zero(
            operator.output
        )
        small = gain.detach() / 1024
        n = int(np.clip(math.floor(math.log2(32766 / max(float(small.abs().max()), 1e-12))), 1, 38))
        while n > 1 and float(offset.detach().abs().max()) * 2.0**n >= 2.0**46:
            n -= 1
        g = torch.round(small * 2.0**n).clamp(-32768, 32767)
        return gain, offset, (g, torch.round(offset.detach() * 2.0**n) + 2.0 ** (n - 1), n)

    def _attention_fields(self, operator: Attention):
        """Real factors of logits and outputs, the integers m, n, C, and m2, n2; all per head."""
        factor = self._held(operator, "ratio") * self.step(operator.input) * self.step(operator.keys)
        nothing = torch.zeros_like(factor.detach())
        ratio = self._held(operator, "shares") * self.step(operator.values) / self.step(operator.output)
        pairs = [numerics.scale_to_mn(value, n_max=30) for value in ratio.detach().tolist()]
        m2, n2 = torch.tensor(pairs, device=ratio.device).T
        return factor, ratio, st.scaled(factor.detach(), nothing, nothing, 0), (m2, n2)

    def _constant(self, operator: Constant) -> torch.Tensor:
        tensor = self.graph.tensor(operator.output)
        real = self._held(operator, "start") + self.weights[key_of(operator.name)] * self._held(
            operator, "unit"
        )
        real = (real / self.step(tensor.name) + self.zero(tensor.name)).clamp(*limits(tensor))
        return st.straight(real, real.round()).float()


def _activity(tensor: Tensor) -> float:
    return _ACTIVITY * 2.0**tensor.bits


def limits(tensor: Tensor) -> tuple[int, int]:
    return -(1 << (tensor.bits - 1)), (1 << (tensor.bits - 1)) - 1


def _curve(table: np.ndarray) -> np.ndarray:
    """The function behind a table of rounded values: lines between the middles of equal entries, within their roundings."""
    edges = np.flatnonzero(np.diff(table)) + 1
    starts, ends = np.r_[0, edges], np.r_[edges, len(table)]
    middles = (starts + ends - 1) / 2
    middles[0], middles[-1] = (ends[0] - 1, starts[-1]) if len(edges) else (0, 0)
    smooth = np.interp(np.arange(len(table)), middles, table[starts])
    return np.clip(smooth, table - 0.49, table + 0.49)


def _slope(table: np.ndarray) -> np.ndarray:
    """Derivative of a table whose entries are rounded, from averages on both sides."""
    reach = max(len(table) // 64, 1)
    padded = np.pad(table, reach, mode="edge")
    ahead = np.convolve(padded, np.ones(reach), "valid")
    return (ahead[reach + 1 :] - ahead[: len(table)]) / (reach * (reach + 1))


def _groups(graph: Graph) -> dict[str, str]:
    """For every tensor, the one that stands for all that share its step and zero point."""
    parent = {tensor.name: tensor.name for tensor in graph.tensors}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for operator in graph.operators:
        if isinstance(operator, MaxPool | Gather | Slice | Reshape | Concat):
            for name in reads(operator):
                parent[root(operator.output)] = root(name)
    return {name: root(name) for name in parent}
