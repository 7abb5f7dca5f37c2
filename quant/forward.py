"""A float model on numpy images, for callers that do not import torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["forward", "torch_threads"]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes on `count` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def forward(module: torch.nn.Module, batch: np.ndarray) -> np.ndarray:
    """The outputs of a module for preprocessed images (N, C, H, W), float32."""
    with torch.inference_mode():
        return module(torch.from_numpy(batch)).numpy()
