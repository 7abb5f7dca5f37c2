"""Statistics of a float graph over calibration images, streamed: memory does not grow with the number of images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F

from ..arch.graph import Preprocessing
from .data import Images
from .floatgraph import FloatGraph, Node, evaluate
from .influence import costs, pieces, probe

__all__ = [
    "Histogram",
    "Moments",
    "Range",
    "Statistics",
    "Stream",
    "collect",
    "patches",
    "preprocess",
    "sampled",
]

_BINS = 8192
_POSITIONS = 1024
"""Pixels of one image that a convolution's moments are taken from, at most."""
_VALUES = 1 << 20
"""Input values of a batch, about."""
_SHRINK = np.concatenate([[1.0], np.geomspace(0.98, 0.15, 48)])


@dataclasses.dataclass(frozen=True)
class Range:
    """A quantized range: real value = scale * (code - zero_point)."""

    scale: float
    zero_point: int
    lo: int
    hi: int


class Histogram:
    """Counts of real values in equal bins of a symmetric range that doubles when a value lies outside."""

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS)
        self.weights = np.zeros(_BINS)
        """What errors of the values cost, where that is known."""
        self.limit = 2.0**-10
        self.minimum, self.maximum = 0.0, 0.0

    def add(self, values: np.ndarray | torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Count `values` (any shape); the squared error of each one costs `weights` (same shape)."""
        values = torch.as_tensor(values, dtype=torch.float32)
        low, high = (float(v) for v in torch.aminmax(values))
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        while max(-self.minimum, self.maximum) > self.limit:
            for array in (self.counts, self.weights):
                merged = array.reshape(-1, 2).sum(axis=1)
                array[:] = 0
                array[_BINS // 4 : -(_BINS // 4)] = merged
            self.limit *= 2
        self.counts += torch.histc(values, _BINS, -self.limit, self.limit).numpy()
        if weights is not None:
            bins = ((values.flatten() / self.limit + 1) * (_BINS / 2)).long().clamp_(0, _BINS - 1)
            self.weights += torch.bincount(bins, weights.flatten().double(), minlength=_BINS).numpy()

    @classmethod
    def merged(cls, parts: list[Histogram]) -> Histogram:
        """The histogram of all values that the parts have counted."""
        if len(parts) == 1:
            return parts[0]
        whole = cls()
        whole.minimum, whole.maximum = min(p.minimum for p in parts), max(p.maximum for p in parts)
        whole.limit = max(part.limit for part in parts)
        for part in parts:
            factor = round(whole.limit / part.limit)
            for into, array in ((whole.counts, part.counts), (whole.weights, part.weights)):
                inner = (
                    array.reshape(-1, factor).sum(axis=1) if factor < _BINS else np.full(2, array.sum() / 2)
                )
                start = (_BINS - len(inner)) // 2
                into[start : start + len(inner)] += inner
        return whole

    def _weighted(self) -> tuple[np.ndarray, np.ndarray]:
        """Values and what their errors cost: counts, or mostly weights where they are known."""
        values, counts = self._occupied()
        if not self.weights.any():
            return values, counts
        return values, costs(self.weights[self.counts > 0], counts)

    def _occupied(self) -> tuple[np.ndarray, np.ndarray]:
        centers = (np.arange(_BINS) + 0.5) * (2 * self.limit / _BINS) - self.limit
        used = self.counts > 0
        return np.clip(centers[used], self.minimum, self.maximum), self.counts[used]

    def affine(self, bits: int) -> Range:
        """The range with zero point and least mean squared error, both ends searched in turn."""
        lo, hi = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        values, costs = self._weighted()

        def fit(low: float, high: float) -> tuple[float, Range]:
            scale = max(high - low, 1e-9) / (hi - lo)
            zero_point = int(np.clip(np.rint(lo - low / scale), lo, hi))
            return self._error(values, costs, found := Range(scale, zero_point, lo, hi)), found

        low, high = self.minimum, self.maximum
        for _ in range(2):
            high = min((fit(low, self.maximum * s)[0], self.maximum * s) for s in _SHRINK)[1]
            low = min((fit(self.minimum * s, high)[0], self.minimum * s) for s in _SHRINK)[1]
        return fit(low, high)[1]

    def symmetric(self, bits: int) -> Range:
        """The range without zero point and with least mean squared error."""
        lo, hi = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        values, costs = self._weighted()
        limit = max(-self.minimum, self.maximum, 1e-9)
        candidates = [Range(float(limit * s / hi), 0, lo, hi) for s in _SHRINK]
        return min(candidates, key=lambda found: self._error(values, costs, found))

    def wide(self, least: float = 0.0) -> Range:
        """An s16 range without zero point and with a bit of headroom, of a scale of at least `least`."""
        scale = 2 * max(-self.minimum, self.maximum, 1e-6) / 32767
        return Range(max(scale, least), 0, -32768, 32767)

    def whole(self, bits: int) -> Range:
        """The range with zero point that clips nothing."""
        lo, hi = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        scale = max(self.maximum - self.minimum, 1e-9) / (hi - lo)
        return Range(scale, int(np.clip(np.rint(lo - self.minimum / scale), lo, hi)), lo, hi)

    def clipped(self, found: Range) -> float:
        """The fraction of values that `found` clips."""
        values, counts = self._occupied()
        codes = np.rint(values / found.scale) + found.zero_point
        return float(counts[(codes < found.lo) | (codes > found.hi)].sum() / max(counts.sum(), 1))

    @staticmethod
    def _error(values: np.ndarray, counts: np.ndarray, found: Range) -> float:
        codes = np.clip(np.rint(values / found.scale) + found.zero_point, found.lo, found.hi)
        return float((counts * (values - (codes - found.zero_point) * found.scale) ** 2).sum())


@dataclasses.dataclass
class Moments:
    """What a weight matrix sees: E[x x^T] (groups, K, K) and E[x] (groups, K), K in the weight's own order."""

    second: np.ndarray
    first: np.ndarray
    count: int
    """Vectors that were averaged."""

    @property
    def hessian(self) -> np.ndarray:
        """What an error of the weights costs when the bias takes its mean: the covariance (groups, K, K) of the inputs.

        Off the diagonal it is shrunk by count / (count + K): as few vectors as columns say little about correlations.
        """
        covariance = self.second - self.first[:, :, None] * self.first[:, None, :]
        depth = covariance.shape[-1]
        kept = self.count / (self.count + depth)
        diagonal = np.einsum("gkk->gk", covariance)
        # a column that hardly varies must still be rounded sensibly for images that are different
        floor = 1e-3 * np.einsum("gkk->gk", self.second)
        return kept * covariance + np.maximum(diagonal * (1 - kept), floor)[:, :, None] * np.eye(depth)


@dataclasses.dataclass
class Statistics:
    """Everything that quantization needs to know about the activations."""

    histograms: dict[str, Histogram]
    """Of every node's value, and of "input"."""
    moments: dict[str, Moments]
    """Of the input of every linear and convolution node, where they were wanted."""
    fisher: dict[str, np.ndarray]
    """Per output channel of these nodes: mean over images of the squared gradient of the loss, summed over positions."""


def preprocess(images: np.ndarray, preprocessing: Preprocessing) -> torch.Tensor:
    """Raw images (N, H, W, C) to the float32 values that the model reads."""
    real = images.astype(np.float64) * preprocessing.scale
    real = (real - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    return torch.from_numpy(real.astype(np.float32))


class Stream:
    """Preprocessed images batch by batch, as often as wanted; only one batch is in memory."""

    def __init__(self, images: Images, preprocessing: Preprocessing):
        self.images, self.preprocessing = images, preprocessing

    def __iter__(self) -> Iterator[torch.Tensor]:
        size = min(max(_VALUES // self.images[0].size, 1), 64)
        for batch in self.images.batches(size):
            yield preprocess(batch, self.preprocessing)


def collect(
    graph: FloatGraph,
    batches: Iterable[torch.Tensor],
    other: Mapping[str, Node] | None = None,
    *,
    weigh: bool = False,
    moments: bool = True,
) -> Statistics:
    """Run `batches` of preprocessed images (N, H, W, C) through `graph` and gather statistics.

    The histogram of a node in `other` is that of what the other node computes from the same inputs. With `weigh` the
    values in the other histograms are weighted by squared gradients, and gradients are those of `influence.probe`.
    Without `moments` those of the layers' inputs are not taken.
    """
    generator = torch.Generator().manual_seed(1)
    histograms = {name: Histogram() for name in ("input", *(node.name for node in graph.nodes))}
    weighted = [node for node in graph.nodes if node.kind in ("linear", "conv")]
    sums: dict[str, list] = {node.name: [0.0, 0.0, 0] for node in weighted}
    fisher = {node.name: np.zeros(node.shape[-1]) for node in weighted}
    count = 0
    for chunk in pieces(batches) if weigh else batches:
        count += len(chunk)
        values = _forward(graph, chunk, {node.name for node in (graph.nodes if weigh else weighted)})
        logits = values[graph.nodes[-1].name].reshape(len(chunk), -1)
        if weigh:
            (logits * probe(logits, generator)).sum().backward()
        else:
            F.cross_entropy(logits, logits.argmax(dim=1), reduction="sum").backward()
        for name, histogram in histograms.items():
            if other and name in other:
                with torch.no_grad():
                    histogram.add(evaluate(other[name], [values[source] for source in other[name].inputs]))
            else:
                gradient = values[name].grad if weigh else None
                histogram.add(values[name].detach(), None if gradient is None else gradient.square())
        for node in weighted:
            gradient = values[node.name].grad
            if gradient is not None:
                fisher[node.name] += gradient.flatten(0, -2).pow(2).sum(0).double().numpy()
            if not moments:
                continue
            x = patches(node, values[node.inputs[0]].detach())
            total = sums[node.name]
            total[0] = total[0] + (x.transpose(-1, -2) @ x).double().numpy()
            total[1] = total[1] + x.sum(dim=1).double().numpy()
            total[2] += x.shape[1]
    found = {
        name: Moments(second / total, first / total, total)
        for name, (second, first, total) in sums.items()
        if total
    }
    return Statistics(histograms, found, {name: total / max(count, 1) for name, total in fisher.items()})


def _forward(graph: FloatGraph, x: torch.Tensor, watched: set[str]) -> dict[str, torch.Tensor]:
    values = {"input": x.clone().requires_grad_()}
    for node in graph.nodes:
        value = evaluate(node, [values[name] for name in node.inputs])
        if node.name in watched:
            value.retain_grad()
        values[node.name] = value
    return values


def sampled(height: int, width: int) -> torch.Tensor:
    """The pixels that `patches` takes of an output of a convolution: indices y * width + x."""
    step = math.ceil(height * width / _POSITIONS)
    while step > 1 and math.gcd(step, width) > 1:  # so that all columns take part
        step += 1
    return torch.arange(0, height * width, step)


def patches(node: Node, x: torch.Tensor) -> torch.Tensor:
    """(groups, samples, K): the vectors that the node's weight rows are multiplied with."""
    if node.kind == "linear":
        return x.flatten(0, -2).unsqueeze(0)
    _, kh, kw, depth = node.params["weight"].shape
    top, bottom, left, right = node.attrs["padding"]
    sy, sx = node.attrs["stride"]
    x = F.pad(x, (0, 0, left, right, top, bottom))
    dy, dx = node.attrs.get("dilation", (1, 1))
    windows = x.unfold(1, dy * (kh - 1) + 1, sy).unfold(2, dx * (kw - 1) + 1, sx)[..., ::dy, ::dx]
    height, width = windows.shape[1:3]
    chosen = sampled(height, width)
    windows = windows[:, chosen // width, chosen % width]  # (N, P, C, kh, kw)
    windows = windows.unflatten(2, (node.attrs["groups"], depth)).permute(2, 0, 1, 4, 5, 3)
    return windows.reshape(node.attrs["groups"], -1, kh * kw * depth)
