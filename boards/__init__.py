"""Boards: budgets, memory systems, clocks; and resource counts from synthesis."""

from .board import Board, BoardError, Interface, Resources
from .configurations import (
    deit_accelerator,
    demo_accelerator,
    fixed8_accelerator,
    large_accelerator,
    second_accelerator,
)
from .fitting import estimate, fit, require_interface
from .ulx3s import ULX3S_85F
from .zcu102 import ZCU102

__all__ = [
    "BOARDS",
    "Board",
    "BoardError",
    "Interface",
    "Resources",
    "deit_accelerator",
    "demo_accelerator",
    "estimate",
    "fit",
    "fixed8_accelerator",
    "large_accelerator",
    "require_interface",
    "second_accelerator",
]

BOARDS: dict[str, Board] = {board.name: board for board in (ZCU102, ULX3S_85F)}
"""All boards by name."""
