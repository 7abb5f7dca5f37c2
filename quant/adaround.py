"""AdaRound (Nagel et al., 2020): which of its two neighbours each weight takes, learned through a relaxation.

The loss is the quadratic one of `gptq`, so that the second moments of the inputs are all it needs.
"""

from __future__ import annotations

import numpy as np
import torch

from ..arch.schemes import Scheme, codebook
from .gptq import descend, weighted_error

__all__ = ["adaround"]

_OPERATIONS = 5e10
_STEPS = (40, 400)
_RATE = 0.05
_BARRIER = (20.0, 2.0)
"""First and last exponent of the regularizer that drives every choice to one side."""
_STRETCH = (-0.1, 1.1)


def adaround(
    weight: np.ndarray, scale: np.ndarray, schemes: np.ndarray, hessian: np.ndarray, codes: np.ndarray
) -> np.ndarray:
    """Codes int64 (O, K) like those of `gptq.round_rows`; rows that do not become better than `codes` keep them."""
    low, high = _neighbours(weight / scale[:, None], schemes)
    w, s, lower = (torch.from_numpy(np.asarray(a, dtype=np.float32)) for a in (weight, scale[:, None], low))
    gap = torch.from_numpy((high - low).astype(np.float32))
    curvature = torch.from_numpy(hessian.astype(np.float32))
    signal = torch.einsum("ok,ok->o", w @ curvature, w).clamp(min=1e-20)
    fraction = ((w / s - lower) / gap.clamp(min=1)).clamp(0.01, 0.99)
    start = (fraction - _STRETCH[0]) / (_STRETCH[1] - _STRETCH[0])
    choice = torch.log(start / (1 - start)).requires_grad_()
    optimizer = torch.optim.Adam([choice], lr=_RATE)
    steps = int(np.clip(_OPERATIONS / (6.0 * weight.size * len(hessian)), *_STEPS))
    for step in range(steps):
        share = (torch.sigmoid(choice) * (_STRETCH[1] - _STRETCH[0]) + _STRETCH[0]).clamp(0, 1)
        error = w - s * (lower + gap * share)
        loss = (torch.einsum("ok,ok->o", error @ curvature, error) / signal).sum()
        if step > steps // 5:
            exponent = np.interp(step, (steps // 5, steps), _BARRIER)
            barrier = (1 - (2 * share - 1).abs().pow(exponent)).sum()
            loss = loss + barrier * float(loss.detach() / weight.size)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = np.where(choice.detach().numpy() >= 0, high, low).astype(np.int64)
    found = descend(weight, scale, schemes, hessian, found)
    before, after = (weighted_error(weight - c * scale[:, None], hessian) for c in (codes, found))
    return np.where((after < before)[:, None], found, codes)


def _neighbours(values: np.ndarray, schemes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The codes below and above each value; the same one twice beyond the ends."""
    low, high = np.empty(values.shape), np.empty(values.shape)
    for scheme in np.unique(schemes):
        rows, book = schemes == scheme, codebook(Scheme(scheme))
        place = np.searchsorted(book, values[rows], side="right")
        low[rows], high[rows] = book[np.maximum(place - 1, 0)], book[np.minimum(place, len(book) - 1)]
    return low, high
