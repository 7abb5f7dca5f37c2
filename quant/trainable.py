"""An integer graph whose weights, biases and steps are parameters: forward is the graph, bit for bit.

Every operator is evaluated on integer codes (`straight`), so that the output is what `sim.reference` computes from
`Trainable.result()`; gradients are straight-through, those of steps as in LSQ+ (Bhalgat et al., 2020) with steps
learned as logarithms. What is learned, and what stays as the quantizer left it:

learned  weights (their schemes stay), row steps, biases; gamma and beta of LayerNorm; constants (position embeddings,
         class tokens, factors); steps of s8 tensors, and their zero points where these lie inside the range
stays    steps of s16 tensors, of the input and of what tables write; tables, exponentials, biases of attention logits
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..arch import numerics
from ..arch.errors import UserError
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

__all__ = ["Trainable"]

_ZERO_POINT_UNIT = 32.0
"""Codes by which a zero point's parameter of 1 moves it."""
_ACTIVITY = 32.0
"""Typical magnitude of an input code, which makes the unit of biases."""
_FLOAT32_EXACT = float(1 << 24)


def _key(name: str) -> str:
    return name.replace(".", ":")


class Trainable(nn.Module):
    """See the module. Parameters are relative to the graph at the start: changes by a few thousandths are small for
    all of them, so that one learning rate fits."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph
        self.group = _groups(graph)
        self.register_buffer("origin", torch.zeros((), dtype=torch.float64), persistent=False)
        fixed = {graph.input} | {t.name for t in graph.tensors if t.dtype == "s16"}
        fixed |= {o.output for o in graph.operators if (d := drained(o)) is not None and d.table}
        fixed = {self.group[name] for name in fixed}
        self.steps, self.zeros = nn.ParameterDict(), nn.ParameterDict()
        self.weights, self.gains, self.offsets = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        used = {name for operator in graph.operators for name in reads(operator)} | {graph.output}
        for root in sorted({self.group[name] for name in used} - fixed):
            tensor = graph.tensor(root)
            lo, hi = _range(tensor)
            self.steps[_key(root)] = nn.Parameter(torch.zeros((), dtype=torch.float64))
            if tensor.zero_point and lo < tensor.zero_point < hi:
                self.zeros[_key(root)] = nn.Parameter(torch.zeros((), dtype=torch.float64))
        for operator in graph.operators:
            self._prepare(operator)

    # -- parameters ---------------------------------------------------------------------------------------------

    def _hold(self, operator: Operator, **arrays) -> None:
        for field, array in arrays.items():
            self.register_buffer(
                f"{_key(operator.name)}/{field}", torch.as_tensor(np.asarray(array)), persistent=False
            )

    def _held(self, operator: Operator, field: str) -> torch.Tensor:
        return getattr(self, f"{_key(operator.name)}/{field}")

    def _prepare(self, operator: Operator) -> None:
        """Parameters of an operator, from its integers: real values are recovered so that nothing changes."""
        graph, key = self.graph, _key(operator.name)

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
            q, k = graph.tensor(operator.input), graph.tensor(operator.keys)
            ratio = constant("m") * 2.0 ** -constant("n") / (q.scale * k.scale)
            self._hold(operator, ratio=ratio, exp=constant("exp").astype(np.float32))
            if operator.bias:
                self._hold(operator, bias=graph.constant(operator, "bias").astype(np.int64))
        elif isinstance(operator, Gather):
            self._hold(operator, index=graph.constant(operator, "index").astype(np.int64))
        if drained(operator) is not None:
            self._prepare_drain(operator, *(constant(field) for field in ("m", "n", "C")))

    def _prepare_drain(self, operator, m: np.ndarray, n: np.ndarray, constant: np.ndarray) -> None:
        key, factor = _key(operator.name), m * 2.0**-n
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
            unit = inputs * gain * size * math.sqrt(codes.shape[1]) * _ACTIVITY
            scheme = self.graph.constant(operator, "scheme").astype(np.int64)
            self._hold(operator, size=size.astype(np.float32)[:, None], unit=unit, scheme=scheme)
            self.weights[key] = nn.Parameter(weight)
            self.gains[key] = nn.Parameter(torch.zeros(len(codes), dtype=torch.float64))
            self.offsets[key] = nn.Parameter(torch.zeros(len(codes), dtype=torch.float64))
        if operator.drain.table:
            table = self.graph.constant(operator, "table").astype(np.float64)
            self._hold(operator, table=table.astype(np.float32), slope=_slope(table).astype(np.float32))
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
        key = _key(self.group[name])
        return start * torch.exp(self.steps[key]) if key in self.steps else self._number(start)

    def zero(self, name: str) -> torch.Tensor:
        """The zero point of a tensor, a whole float64, with gradient."""
        tensor, key = self.graph.tensor(name), _key(self.group[name])
        if key not in self.zeros:
            return self._number(tensor.zero_point)
        real = (tensor.zero_point + _ZERO_POINT_UNIT * self.zeros[key]).clamp(*_range(tensor))
        return st.straight(real, real.round())

    def _number(self, value: float) -> torch.Tensor:
        return torch.full_like(self.origin, float(value))

    # -- integers -----------------------------------------------------------------------------------------------

    def _codes(self, operator: Linear | Conv) -> torch.Tensor:
        """Weight codes (O, K) with gradient to weights and row steps."""
        key = _key(operator.name)
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
        key, table = _key(operator.name), operator.drain.table
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

    def _limits(self, operator: Operator) -> tuple[int, int]:
        """What a drain without table clamps to: rectifiers follow zero point and step."""
        y, drain = self.graph.tensor(operator.output), operator.drain
        lo, hi = _range(y)
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
        key, unit = _key(operator.name), self._held(operator, "unit")
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
        """Real factors of logits (heads,) and outputs, and the integers m, n, C, m2, n2 per head."""
        factor = self._held(operator, "ratio") * self.step(operator.input) * self.step(operator.keys)
        nothing = torch.zeros_like(factor.detach())
        ratio = self.step(operator.values) / self.step(operator.output)
        m2, n2 = numerics.scale_to_mn(float(ratio.detach()), n_max=30)
        return factor, ratio, st.scaled(factor.detach(), nothing, nothing, 0), (m2, n2)

    def _constant(self, operator: Constant) -> torch.Tensor:
        tensor = self.graph.tensor(operator.output)
        real = self._held(operator, "start") + self.weights[_key(operator.name)] * self._held(
            operator, "unit"
        )
        real = (real / self.step(tensor.name) + self.zero(tensor.name)).clamp(*_range(tensor))
        return st.straight(real, real.round()).float()

    # -- evaluation ---------------------------------------------------------------------------------------------

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Real outputs (N, ...) of input codes (N, *input shape); the codes behind them are `codes_of`'s."""
        output = self.codes_of(codes)
        name = self.graph.output
        return (output - self.zero(name).float()) * self.step(name).float()

    def codes_of(self, codes: torch.Tensor) -> torch.Tensor:
        """Output codes (N, ...), float32 integers with gradient."""
        last = {name: i for i, o in enumerate(self.graph.operators) for name in reads(o)}
        values = {self.graph.input: codes.float()}
        for i, operator in enumerate(self.graph.operators):
            self._evaluate(operator, values, len(codes))
            for name in set(reads(operator)):
                if last[name] == i and name != self.graph.output:
                    del values[name]
        return values[self.graph.output]

    def _evaluate(self, operator: Operator, values: dict[str, torch.Tensor], count: int) -> None:
        shape = self.graph.tensor(operator.output).shape
        match operator:
            case Constant():
                found = self._constant(operator).expand(count, *shape)
            case Concat():
                parts = [values[name] for name in operator.inputs]
                if operator.axis == "channels":
                    found = torch.cat(parts, -1)
                else:
                    found = torch.cat([part.flatten(1, -2) for part in parts], 1)
            case Attention():
                found = self._attend(operator, values)
            case LayerNorm():
                gain, offset, integers = self._normalization(operator)
                x, step = values[operator.input], self.graph.tensor(operator.input).scale
                lo_hi = (operator.lo, operator.hi)
                found = st.layernorm(x, gain, offset, step, integers, operator.eps, *lo_hi)
            case MaxPool():
                top, bottom, left, right = operator.padding
                x = F.pad(values[operator.input], (0, 0, left, right, top, bottom), value=float("-inf"))
                y = F.max_pool2d(x.permute(0, 3, 1, 2), operator.kernel, operator.stride)
                found = y.permute(0, 2, 3, 1)
            case Gather():
                index, x = self._held(operator, "index"), values[operator.input].flatten(1, -2)
                zero = self.zero(operator.input).float()
                found = torch.where(index[:, None] < 0, zero, x[:, index.clamp(min=0)])
            case Slice():
                found = values[operator.input][:, operator.start : operator.start + operator.count]
            case Reshape():
                found = values[operator.input]
            case _:
                self._drained(operator, values)
                return
        values[operator.output] = found.reshape(count, *shape)

    def _drained(self, operator: Operator, values: dict[str, torch.Tensor]) -> None:
        x = values[operator.input] - self.zero(operator.input).float()
        codes = self._codes(operator) if isinstance(operator, Linear | Conv) else None
        match operator:
            case Linear() | Conv():
                acc = self._product(operator, x, codes)
                exact = acc.detach()
                if self._largest(operator, codes) >= _FLOAT32_EXACT:
                    exact = self._product(operator, x.detach().double(), codes.detach().double())
            case AvgPool():
                acc = exact = self._pool(operator, x)
            case Multiply():
                acc = exact = x * values[operator.other]
            case _:
                acc = exact = x
        shape = self.graph.tensor(operator.output).shape
        acc, exact = acc.reshape(len(x), *shape), exact.detach().reshape(len(x), *shape)
        factor, offset, (m, n, constant, sums) = self._drain_fields(operator, codes)
        real = acc * factor.float() + offset.float()
        drain, integers = operator.drain, (m, n, constant + sums * m)
        exact = exact.double().round_()
        if drain.table:
            half = 1 << 31
            table = self._held(operator, "table").clamp(drain.lo, drain.hi)
            edge = len(table) // 2
            index = st.straight(
                real.clamp(-edge, edge - 1),
                st.requantize(exact, *integers, -half, half - 1).clamp(-edge, edge - 1),
            )
            values[operator.output] = st.lookup(index, table, self._held(operator, "slope"))
        elif drain.residual is not None:
            lo, hi = self._limits(operator)
            other = values[drain.residual.tensor].reshape(real.shape)
            ratio, m, n = self._residual(operator)
            total = st.requantize(exact, *integers, -32768, 32767)
            total = st.residual_add(total, other, m, n, lo, hi)
            values[operator.output] = st.straight((real + other * ratio.float()).clamp(lo, hi), total)
        else:
            lo, hi = self._limits(operator)
            values[operator.output] = st.straight(real.clamp(lo, hi), st.requantize(exact, *integers, lo, hi))
        if drain.second is not None:
            self._write_second(operator, values)

    def _write_second(self, operator: Operator, values: dict[str, torch.Tensor]) -> None:
        second, first = operator.drain.second, values[operator.output]
        factor = (self.step(operator.output) / self.step(second.tensor)).float()
        real = (first * factor + self.zero(second.tensor).float()).clamp(second.lo, second.hi)
        exact = st.requantize(first, *self._second(operator), second.lo, second.hi)
        values[second.tensor] = st.straight(real, exact)

    def _product(self, operator: Linear | Conv, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        if isinstance(operator, Linear):
            return F.linear(x, codes)
        shape = self.graph.constant(operator, "weight").shape
        top, bottom, left, right = operator.padding
        if top == bottom and left == right:
            padding = (top, left)
        else:
            x, padding = F.pad(x, (0, 0, left, right, top, bottom)), 0
        weight = codes.reshape(shape).permute(0, 3, 1, 2)
        x = x.permute(0, 3, 1, 2)
        y = F.conv2d(x, weight, None, operator.stride, padding, operator.dilation, operator.groups)
        y = y.permute(0, 2, 3, 1)
        return F.pad(y.flatten(1, 2), (0, 0, operator.prefix, 0)) if operator.prefix else y

    def _largest(self, operator: Linear | Conv, codes: torch.Tensor) -> float:
        lo, hi = _range(self.graph.tensor(operator.input))
        zero = float(self.zero(operator.input).detach())
        return float(codes.detach().abs().sum(1).max()) * max(zero - lo, hi - zero)

    @staticmethod
    def _pool(operator: AvgPool, x: torch.Tensor) -> torch.Tensor:
        x = (x.unsqueeze(2) if x.dim() == 3 else x).permute(0, 3, 1, 2)
        top, bottom, left, right = operator.padding
        x = F.pad(x, (left, right, top, bottom))
        return F.avg_pool2d(x, operator.kernel, operator.stride, divisor_override=1).permute(0, 2, 3, 1)

    def _attend(self, operator: Attention, values: dict[str, torch.Tensor]) -> torch.Tensor:
        def heads(name: str) -> torch.Tensor:
            x = values[name].unflatten(-1, (operator.heads, -1)).transpose(1, 2)
            return x.unflatten(2, (operator.windows, -1)).transpose(1, 2)

        factor, ratio, logits, (m2, n2) = self._attention_fields(operator)
        found = st.attend(
            *(heads(name) for name in (operator.input, operator.keys, operator.values)),
            logits=tuple(part[:, None, None] for part in logits),
            factor=factor.float()[:, None, None],
            m2=self._number(m2),
            n2=self._number(n2),
            exp=self._held(operator, "exp"),
            bias=self._held(operator, "bias") if operator.bias else None,
            ratio=ratio.float(),
            lo=operator.lo,
            hi=operator.hi,
        )
        return found.transpose(2, 3).flatten(3).flatten(1, 2)

    # -- the graph ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def contain(self) -> None:
        """Grow the steps of rows that could overflow their accumulators; a call after every step of training."""
        limit = float(1 << (numerics.ACCUMULATOR_BITS - 1))
        for operator in self.graph.operators:
            if isinstance(operator, Linear | Conv):
                lo, hi = _range(self.graph.tensor(operator.input))
                if self.weights[_key(operator.name)].shape[1] * 127 * max(-lo, hi) < limit:
                    continue
                while bool((over := _reach(self._codes(operator), lo, hi) >= limit).any()):
                    self.gains[_key(operator.name)][over] += 0.02

    @torch.no_grad()
    def result(self, name: str | None = None) -> Graph:
        """The integer graph of the parameters as they are."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters()):
            raise UserError("training must end with finite weights, but has diverged; lower the rate")
        self.contain()
        constants = dict(self.graph.constants)
        operators = tuple(self._integer(operator, constants) for operator in self.graph.operators)
        tensors = tuple(
            dataclasses.replace(t, scale=float(self.step(t.name)), zero_point=int(self.zero(t.name).detach()))
            for t in self.graph.tensors
        )
        return dataclasses.replace(
            self.graph,
            name=name or self.graph.name,
            tensors=tensors,
            operators=operators,
            constants=constants,
        )

    def _integer(self, operator: Operator, constants: dict[str, np.ndarray]) -> Operator:
        """The operator with its new fields; its arrays are put into `constants`."""

        def store(**fields) -> None:
            for field, value in fields.items():
                old = constants[f"{operator.name}/{field}"]
                whole = torch.as_tensor(value).round().to(torch.int64).cpu().numpy()
                constants[f"{operator.name}/{field}"] = (
                    np.broadcast_to(whole, old.shape) if whole.ndim == 0 else whole.reshape(old.shape)
                ).astype(old.dtype)

        match operator:
            case Constant():
                store(value=self._constant(operator))
            case LayerNorm():
                _, _, (g, b, n) = self._normalization(operator)
                store(g=g, b=b)
                return dataclasses.replace(operator, n=n)
            case Attention():
                _, _, (m, n, constant), (m2, n2) = self._attention_fields(operator)
                store(m=m, n=n, C=constant, m2=m2, n2=n2)
        drain = drained(operator)
        if drain is None:
            return operator
        codes = self._codes(operator) if isinstance(operator, Linear | Conv) else None
        if codes is not None:
            store(weight=codes)
        _, _, (m, n, constant, _) = self._drain_fields(operator, codes)
        store(m=m, n=n, C=constant)
        if drain.second is not None:
            parts = (int(part) for part in self._second(operator))
            second = dataclasses.replace(
                drain.second, **dict(zip(("m", "n", "constant"), parts, strict=True))
            )
            drain = dataclasses.replace(drain, second=second)
        if drain.residual is not None:
            _, m, n = self._residual(operator)
            drain = dataclasses.replace(drain, residual=dataclasses.replace(drain.residual, m=m, n=n))
        if not drain.table:
            lo, hi = self._limits(operator)
            drain = dataclasses.replace(drain, lo=lo, hi=hi)
        return dataclasses.replace(operator, drain=drain)


def _range(tensor: Tensor) -> tuple[int, int]:
    return -(1 << (tensor.bits - 1)), (1 << (tensor.bits - 1)) - 1


def _reach(codes: torch.Tensor, lo: int, hi: int) -> torch.Tensor:
    """The largest magnitude of every row's sum over inputs lo..hi."""
    positive, negative = codes.clamp(min=0).double().sum(1), codes.clamp(max=0).double().sum(1)
    return torch.maximum(positive * hi + negative * lo, -(positive * lo + negative * hi))


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
