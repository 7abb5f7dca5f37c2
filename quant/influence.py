"""How much the answers of a float graph depend on its values, and ranges that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from .floatgraph import FloatGraph, evaluate

__all__ = [
    "PLAIN",
    "backward",
    "best_shares",
    "channel_ranges",
    "costs",
    "pieces",
    "position_counts",
    "probe",
]

_IMAGES = 2
"""Images of which all values and gradients are in memory at once."""
_TEMPERATURE = 2.0
"""Divides the logits, so that images of which a model is certain count as well."""
_BINS = 256
_SHARES = np.geomspace(1.0, 0.1, 40)
PLAIN = 1.0
"""What the plain count of values weighs beside their gradients, which are those of few images."""


def probe(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random direction (N, O) for each row of logits, whose covariance is diag(p) - p p^T with the softened answers p.

    The squared gradient of `logits * probe` with respect to a value estimates what noise of the value adds to the
    divergence of the answers (the diagonal of the Fisher information).
    """
    p = torch.softmax(logits.detach() / _TEMPERATURE, 1)
    signs = torch.randint(0, 2, p.shape, generator=generator).to(p) * 2 - 1
    direction = p.sqrt() * signs
    return direction - p * direction.sum(1, keepdim=True)


def pieces(batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The images of `batches`, few enough at once for gradients of all values."""
    for batch in batches:
        yield from batch.split(_IMAGES)


def backward(graph: FloatGraph, batches: Iterable[torch.Tensor], names: set[str]) -> Iterator[dict]:
    """For each batch the named values and the squares of their gradients: {name: (value, square)}."""
    generator = torch.Generator().manual_seed(0)
    for batch in batches:
        values = {"input": batch.clone().requires_grad_()}
        for node in graph.nodes:
            values[node.name] = evaluate(node, [values[name] for name in node.inputs])
            if node.name in names:
                values[node.name].retain_grad()
        logits = values[graph.nodes[-1].name].flatten(1)
        (logits * probe(logits, generator)).sum().backward()
        yield {name: (values[name].detach(), values[name].grad.square()) for name in names}


def channel_ranges(
    graph: FloatGraph, batches: Iterable[torch.Tensor], largest: dict[str, np.ndarray], bits: int
) -> dict[str, np.ndarray]:
    """Magnitudes (C,) for every value in `largest` at which rounding each channel alone to 2**bits steps costs least.

    `largest` holds the largest magnitude of each channel. Squared errors are weighted by squared gradients.
    """
    weighted = {name: np.zeros((len(top), _BINS)) for name, top in largest.items()}
    counted = {name: np.zeros((len(top), _BINS)) for name, top in largest.items()}
    for found in backward(graph, pieces(batches), set(largest)):
        for name, (value, square) in found.items():
            top = torch.from_numpy(np.maximum(largest[name], 1e-30)).float()
            bins = ((value.flatten(0, -2) / top + 1) * (_BINS / 2)).long().clamp_(0, _BINS - 1)
            bins = (bins + torch.arange(len(top)) * _BINS).flatten()
            shape = counted[name].shape
            counted[name] += torch.bincount(bins, minlength=shape[0] * _BINS).reshape(shape).numpy()
            square = square.double().flatten()
            weighted[name] += torch.bincount(bins, square, minlength=shape[0] * _BINS).reshape(shape).numpy()
    return {name: top * best_shares(weighted[name], counted[name], bits) for name, top in largest.items()}


def position_counts(
    graph: FloatGraph, batches: Iterable[torch.Tensor], names: set[str]
) -> dict[str, list[torch.Tensor]]:
    """What an error at each position of the named values counts: for each batch (N, positions ...), 1 on average.

    Squared gradients, averaged over channels, weigh as much as the plain count times `PLAIN` (GuidedQuant: Kim et al.,
    2025, weighs the inputs of a layer by gradients).
    """
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for batch in batches:
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        for values in backward(graph, pieces([batch]), names):
            for name, (_, squares) in values.items():
                parts[name].append(squares.mean(-1))
        for name, its in parts.items():
            found[name].append(torch.cat(its))
    for name, its in found.items():
        mean = max(float(torch.cat([part.flatten() for part in its]).double().mean()), 1e-30)
        found[name] = [(part / mean + PLAIN) / (1 + PLAIN) for part in its]
    return found


def best_shares(weighted: np.ndarray, counted: np.ndarray, bits: int) -> np.ndarray:
    """The share (C,) of a channel's largest magnitude that a range of 2**bits steps should cover.

    `weighted` and `counted` (C, bins) are histograms from minus to plus this magnitude. Where no channel is negative,
    ranges begin at zero.
    """
    bins = counted.shape[1]
    centers = (np.arange(bins) + 0.5) * (2 / bins) - 1
    positive = not counted[:, : bins // 2].any()
    steps = _SHARES * (1 if positive else 2) / (2**bits - 1)
    lo, hi = (0, 2**bits - 1) if positive else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    rounded = np.clip(np.rint(centers[:, None] / steps), lo, hi) * steps
    squares = (centers[:, None] - rounded) ** 2  # (bins, shares)
    return _SHARES[np.argmin(costs(weighted, counted) @ squares, axis=1)]


def costs(weighted: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """What a squared error in each bin costs, from sums of squared gradients and counts (..., bins)."""
    gradients = weighted / np.maximum(weighted.sum(-1, keepdims=True), 1e-300)
    return gradients + PLAIN * counted / np.maximum(counted.sum(-1, keepdims=True), 1)
