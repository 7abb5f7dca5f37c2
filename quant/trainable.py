"""An integer graph whose weights, biases and steps are parameters: forward is the graph, bit for bit.

Every operator is evaluated on integer codes (`straight`), so that the output is what `sim.reference` computes from
`Trainable.result()`; gradients are straight-through, those of steps as in LSQ+ (Bhalgat et al., 2020) with steps
learned as logarithms. What is learned, and what stays as the quantizer left it:

learned  weights (their schemes stay), row steps, biases; gamma and beta of LayerNorm; constants (position embeddings,
         class tokens, factors); steps of s8 tensors, and their zero points where these lie inside the range, tables included
stays    steps of s16 tensors and of the input; functions of tables, exponentials, biases of attention logits
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from ..arch import numerics
from ..arch.errors import UserError
from ..arch.graph import (
    Attention,
    AvgPool,
    Concat,
    Constant,
    Conv,
    Gather,
    Graph,
    LayerNorm,
    Linear,
    MaxPool,
    Multiply,
    Operator,
    Reshape,
    Slice,
    drained,
    reads,
)
from . import straight as st
from .parameters import Parameters, key_of, limits

__all__ = ["Trainable"]

_FLOAT32_EXACT = float(1 << 24)


class Trainable(Parameters):
    """A module from input codes to real outputs, and back to a graph by `result`; see above."""

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
            table = self._table(operator)
            edge = len(table[0]) // 2
            index = st.straight(
                real.clamp(-edge, edge - 1),
                st.requantize(exact, *integers, -half, half - 1).clamp(-edge, edge - 1),
            )
            values[operator.output] = st.lookup(index, *table)
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
        lo, hi = limits(self.graph.tensor(operator.input))
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
            m2=m2[:, None],
            n2=n2[:, None],
            exp=self._held(operator, "exp"),
            bias=self._held(operator, "bias") if operator.bias else None,
            ratio=ratio.float()[:, None, None],
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
                lo, hi = limits(self.graph.tensor(operator.input))
                if self.weights[key_of(operator.name)].shape[1] * 127 * max(-lo, hi) < limit:
                    continue
                while bool((over := _reach(self._codes(operator), lo, hi) >= limit).any()):
                    self.gains[key_of(operator.name)][over] += 0.02

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
        if drain.table:
            store(table=self._table(operator)[0])
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


def _reach(codes: torch.Tensor, lo: int, hi: int) -> torch.Tensor:
    """The largest magnitude of every row's sum over inputs lo..hi."""
    positive, negative = codes.clamp(min=0).double().sum(1), codes.clamp(max=0).double().sum(1)
    return torch.maximum(positive * hi + negative * lo, -(positive * lo + negative * hi))
