"""Layers that make up for the errors of the layers before them.

Images walk through the float network and the quantized one side by side, an operator at a time. Each layer is fitted
by least squares to the sums that it has in float, for the inputs that it has in the quantized network, and is then
rounded for these inputs (GPTAQ: Li et al., 2025, has the same target). Positions count by what their errors do to the
answers (`influence.position_counts`). The error of a residual that is added to the
sums belongs to what is made up for.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from .builder import Builder
from .calibrate import Moments, Range, Stream, patches, sampled
from .floatgraph import FloatGraph, Node, evaluate
from .influence import position_counts
from .units import Unit

__all__ = ["Follower", "Wanted", "fitted"]

_BYTES = 5 << 28
"""Values of the images under way, at most; what does not fit takes fewer images."""
_VALUE_BYTES = 6
"""float32 in the float network, codes of at most 16 bits in the quantized one."""
_RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Penalties of a change of the weights, relative to the inputs' variances."""


@dataclasses.dataclass
class Wanted:
    """What a layer should compute."""

    weight: np.ndarray
    """float64 (groups, O, K)."""
    moments: Moments
    """Of its inputs."""
    mean: np.ndarray
    """Of its sums with bias, float64 (groups * O,)."""


class _Sums:
    """Sums over the vectors x (groups, S, K) and wanted results t (groups, S, O) of one half of the images."""

    def __init__(self) -> None:
        self.count, self.x, self.xx, self.t, self.tx = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, x: torch.Tensor, t: torch.Tensor, counts: torch.Tensor) -> None:
        """Take in samples, each of which counts `counts` (S,) times."""
        weighted = x * counts[:, None]
        self.count += float(counts.double().sum())
        self.x = self.x + weighted.sum(1).double().numpy()
        self.t = self.t + (t * counts[:, None]).sum(1).double().numpy()
        self.xx = self.xx + (weighted.transpose(-1, -2) @ x).double().numpy()
        self.tx = self.tx + (t.transpose(-1, -2) @ weighted).double().numpy()

    def __add__(self, other: _Sums) -> _Sums:
        both = _Sums()
        for key in vars(both):
            setattr(both, key, getattr(self, key) + getattr(other, key))
        return both

    @property
    def covariances(self) -> tuple[np.ndarray, np.ndarray]:
        """Of x (groups, K, K), and of t and x (groups, O, K)."""
        x, t = self.x / self.count, self.t / self.count
        return (
            self.xx / self.count - x[:, :, None] * x[:, None, :],
            self.tx / self.count - t[:, :, None] * x[:, None, :],
        )


def fitted(weight: np.ndarray, halves: list[_Sums]) -> np.ndarray:
    """The weights (groups, O, K) near `weight` that give t from x with the least squared error.

    How near is decided by the error that the fit to one half of the images has on the other half.
    """
    if not all(half.count for half in halves):
        return weight
    parts = [half.covariances for half in halves]
    best = _error(weight, *parts[0]) + _error(weight, *parts[1]), math.inf
    for ridge in _RIDGES:
        error = sum(_error(_ridge(weight, *parts[i], ridge), *parts[1 - i]) for i in (0, 1))
        best = min(best, (error, ridge))
    if best[1] == math.inf:
        return weight
    return _ridge(weight, *(halves[0] + halves[1]).covariances, best[1])


def _ridge(weight: np.ndarray, covariance: np.ndarray, cross: np.ndarray, ridge: float) -> np.ndarray:
    variance = np.einsum("gkk->gk", covariance)
    penalty = ridge * (variance + 1e-3 * variance.mean(axis=1, keepdims=True) + 1e-12)
    damped = covariance + penalty[:, :, None] * np.eye(covariance.shape[-1])
    missing = cross - weight @ covariance
    return weight + np.linalg.solve(damped, missing.transpose(0, 2, 1)).transpose(0, 2, 1)


def _error(weight: np.ndarray, covariance: np.ndarray, cross: np.ndarray) -> float:
    return float(((weight @ covariance - 2 * cross) * weight).sum())


class Follower:
    """Some of the calibration images on their way through both networks: `graph`, and what `builder` makes of its own
    graph, whose nodes have the same names."""

    def __init__(self, builder: Builder, stream: Stream, graph: FloatGraph):
        self.builder = builder
        self.nodes = {node.name: node for node in graph.nodes}
        self.last_use = {
            name: i
            for i, unit in enumerate(builder.units)
            for name in (*unit.anchor.inputs, unit.out, *([unit.residual] if unit.residual else []))
        }
        images, limit = stream.images, max(_BYTES // (_VALUE_BYTES * self._widest()), 2)
        if len(images) > limit:
            images = images.split(limit)[0]
        batches = list(Stream(images, stream.preprocessing))
        batches = [part for batch in batches for part in batch.split(math.ceil(len(batch) / 2))]
        found = builder.range("input", "s8")
        self.real = {"input": batches}
        self.codes = {"input": [_encoded(batch, found) for batch in batches]}
        self.written = {"input": found}
        """The ranges of the codes."""
        layers = {unit.anchor.name for unit in builder.units if unit.anchor.kind in ("conv", "linear")}
        self.counts = position_counts(graph, batches, layers)
        """What errors of each layer's sums count."""
        self.rounded: dict[str, dict[str, torch.Tensor]] = {}
        self.sums: list[torch.Tensor] = []
        """Of the next layer in the float network, from `wanted` until `advance`."""

    def _widest(self) -> int:
        """Most values of one image that are needed at once."""
        sizes = {name: int(np.prod(shape)) for name, shape in self.builder.shapes.items()}
        live, most = {"input"}, 0
        for i, unit in enumerate(self.builder.units):
            live.add(unit.out)
            most = max(most, sum(sizes[name] for name in live))
            live = {name for name in live if self.last_use.get(name, i) > i}
        return most

    def wanted(self, unit: Unit) -> Wanted:
        """What the layer of `unit`, which is the next one, should compute."""
        node = unit.anchor
        weight, groups = node.params["weight"].double().numpy(), int(node.attrs.get("groups", 1))
        weight = weight.reshape(groups, weight.shape[0] // groups, -1)
        halves = [_Sums(), _Sums()]
        self.sums = [evaluate(node, [x]) for x in self.real[node.inputs[0]]]
        for i, (sums, counts) in enumerate(zip(self.sums, self.counts[node.name], strict=True)):
            target = sums
            if unit.residual is not None:
                target = sums + self.real[unit.residual][i] - self._read(unit.residual, "s16", i)
            if node.kind == "conv":
                places = sampled(*target.shape[1:3])
                target = target.flatten(1, 2)[:, places]
                counts = counts.flatten(1)[:, places]
            target = target.reshape(-1, groups, weight.shape[1]).transpose(0, 1)
            halves[i % 2].add(patches(node, self._read(node.inputs[0], "s8", i)), target, counts.flatten())
        both = halves[0] + halves[1]
        moments = Moments(both.xx / both.count, both.x / both.count, both.count)
        return Wanted(fitted(weight, halves), moments, (both.t / both.count).reshape(-1))

    def round(self, node: Node, weight: np.ndarray, bias: np.ndarray) -> None:
        """Take note of the parameters that the layer `node` has in the quantized network."""
        self.rounded[node.name] = {
            "weight": torch.from_numpy(weight).float(),
            "bias": torch.from_numpy(bias).float(),
        }

    def advance(self, unit: Unit) -> None:
        """Compute the value of `unit`, whose operators have been emitted, in both networks."""
        node, builder = unit.anchor, self.builder
        params = self.rounded.pop(node.name, None)
        quantized = node if params is None else dataclasses.replace(node, params=node.params | params)
        wide = not {(unit.out, "s16"), (f"{unit.out}.image", "s16")}.isdisjoint(builder.written)
        found = builder.range(unit.out, "s16" if wide else "s8")
        act = unit.act and self.nodes[unit.act.name]
        real, codes = [], []
        for i in range(len(self.real["input"])):
            sums = self.sums.pop(0) if self.sums else self._evaluate(self.nodes[node.name], self.real, i)
            real.append(_finished(unit, act, sums, self._residual(unit, i, self.real)))
            sums = self._evaluate(quantized, None, i)
            value = _finished(unit, unit.act, sums, self._residual(unit, i, None))
            codes.append(_encoded(value, found))
        self.real[unit.out], self.codes[unit.out], self.written[unit.out] = real, codes, found
        now = builder.units.index(unit)
        for name in [*self.real]:
            if name != "input" and self.last_use[name] <= now:
                del self.real[name], self.codes[name]

    def _residual(self, unit: Unit, i: int, values: dict | None) -> torch.Tensor | None:
        if unit.residual is None or unit.anchor.kind not in ("conv", "linear"):
            return None
        return values[unit.residual][i] if values else self._read(unit.residual, "s16", i)

    def _evaluate(self, node: Node, values: dict | None, i: int) -> torch.Tensor:
        """The node's value from float `values`, or from those of the quantized network."""
        if values is not None:
            return evaluate(node, [values[name][i] for name in node.inputs])
        match node.kind:
            case "layernorm" | "add" | "slice" | "reshape" | "gather" | "concat" | "tokens":
                dtypes = ("s16",) * len(node.inputs)
            case "multiply":
                dtypes = ("s16", "s8")
            case _:
                dtypes = ("s8",) * len(node.inputs)
        return evaluate(node, [self._read(name, d, i) for name, d in zip(node.inputs, dtypes, strict=False)])

    def _read(self, name: str, dtype: str, i: int) -> torch.Tensor:
        value = _decoded(self.codes[name][i], self.written[name])
        if dtype == "s16":
            return value
        found = self.builder.range(name, "s8")
        return _decoded(_encoded(value, found), found)


def _finished(
    unit: Unit, act: Node | None, sums: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    """The value of a unit from what its anchor computes; `act` is its activation, which the anchor itself may be."""
    if unit.constant is not None and unit.anchor.kind in ("conv", "linear"):
        rows = torch.from_numpy(unit.constant).float()
        sums = sums.flatten(1, -2) + rows[unit.prefix :]
        sums = torch.cat([rows[: unit.prefix].expand(len(sums), -1, -1), sums], dim=1)
    if residual is not None:
        sums = sums + residual
    return sums if act is None or act.name == unit.anchor.name else evaluate(act, [sums])


def _encoded(value: torch.Tensor, found: Range) -> torch.Tensor:
    codes = torch.round(value / found.scale) + found.zero_point
    return codes.clamp(found.lo, found.hi).to(torch.int8 if found.hi < 128 else torch.int16)


def _decoded(codes: torch.Tensor, found: Range) -> torch.Tensor:
    return (codes.float() - found.zero_point) * found.scale
