"""The check after lowering: what encoded instructions access, found from their fields alone."""

from __future__ import annotations

import numpy as np

from ..arch.accelerator import Accelerator
from .ir import Item

__all__ = ["section"]


def section(accelerator: Accelerator, items: list[Item], words: np.ndarray) -> None:
    pass
