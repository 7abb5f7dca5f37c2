"""What a board record holds."""

from __future__ import annotations

import dataclasses

from ..arch.accelerator import Accelerator
from ..arch.errors import UserError
from ..arch.memory import MemoryModel

__all__ = ["Board", "BoardError", "Interface", "Resources"]


class BoardError(UserError):
    """A request that a board cannot hold; the message says what is missing and what would fit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """Amounts of the resources of an FPGA: a budget, an estimate or a count."""

    lut: int
    """Look-up tables, those used as carry chains, RAM and shift registers included."""
    ff: int
    """Flip-flops."""
    dsp: int
    """Hard multipliers (DSP48E2; 18x18 on ECP5)."""
    bram: float
    """Block RAMs in the family's own size (36 kbit on UltraScale+, where a half is one of 18; 18 kbit on ECP5)."""

    def __add__(self, other: Resources) -> Resources:
        return self._each(other, lambda a, b: a + b)

    def __mul__(self, factor: int) -> Resources:
        return self._each(self, lambda a, _: a * factor)

    def _each(self, other: Resources, function) -> Resources:
        names = [field.name for field in dataclasses.fields(self)]
        return Resources(**{name: function(getattr(self, name), getattr(other, name)) for name in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interface:
    """The way to the board's DRAM."""

    bus_bytes: int
    """Width of one AXI port."""
    ports: int
    """AXI ports to the memory."""
    clock_mhz: float
    """Highest clock of the ports."""
    latency_cycles: int
    """From a read address to the first beat, at the accelerator's clock."""
    refresh_cycles: int
    """Lost in every refresh period, likewise."""
    refresh_period: int
    """From refresh to refresh, in cycles, likewise."""
    bandwidth_bytes_per_second: float
    """Of the memory, peak."""
    description: str

    @property
    def memory(self) -> MemoryModel:
        """What the simulators of the machine have for a memory on this board."""
        return MemoryModel(
            latency=self.latency_cycles,
            refresh_cycles=self.refresh_cycles,
            refresh_period=self.refresh_period,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Board:
    """A board (an FPGA with memory)."""

    name: str
    part: str
    flow: str
    """Synthesis flow; a key of `synthesis.FLOWS`."""
    budget: Resources
    interface: Interface
    clock_mhz: float
    """Target clock of the accelerator."""
    default: Accelerator
    """Parameters that fit with headroom."""
