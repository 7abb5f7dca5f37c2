"""Boards: budgets, memory systems, clocks; and resource counts from synthesis."""

from .board import Board, BoardError, Interface, Resources
from .configurations import (
    deit_accelerator,
    demo_accelerator,
    fixed8_accelerator,
    large_accelerator,
    mixed_accelerator,
    mobilenet_accelerator,
    pynq_accelerator,
    quads_accelerator,
    second_accelerator,
    small_accelerator,
    zc706_accelerator,
)
from .fitting import estimate, require_lanes
from .requests import fit, require_interface
from .ulx3s import ULX3S_85F
from .zcu102 import ZCU102
from .zynq import PYNQ_Z1, ZC706

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
    "mixed_accelerator",
    "mobilenet_accelerator",
    "pynq_accelerator",
    "quads_accelerator",
    "require_interface",
    "require_lanes",
    "second_accelerator",
    "small_accelerator",
    "zc706_accelerator",
]

BOARDS: dict[str, Board] = {board.name: board for board in (ZCU102, ULX3S_85F, ZC706, PYNQ_Z1)}
"""All boards by name."""
