"""The memory outside: one timing model for the simulators of the machine."""

from __future__ import annotations

import dataclasses

__all__ = ["MemoryModel"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """Timing of the AXI4 memory that the RTL harness implements and the cycle model predicts.

    The memory samples handshakes at each rising clock edge; an edge has a cycle number c. What a signal is "in cycle
    c" is its value before that edge; a transfer happens in cycle c when valid and ready are both 1 in it. Without
    random stalls:

    - Reads. `arready` is always 1. A burst whose address is accepted in cycle c becomes eligible at c + latency. Bursts
      are served in the order of acceptance, and their beats are presented (`rvalid` = 1) one at a time and held until
      they are accepted. A beat is first presented in the cycle max(a, b, d) with a = the eligible cycle of its burst,
      b = the cycle in which the beat before it was first presented + interval, d = the cycle after the one in which
      the beat before it was accepted.
    - Writes. `awready` is always 1. `wready` is 1 in cycle c if and only if c >= (the cycle of the W beat accepted
      last) + interval. The response of a burst is presented (`bvalid` = 1) from the cycle (its last W beat accepted) +
      latency on, one at a time, in order, the next one no earlier than the cycle after the one in which the response
      before it was accepted.

    - Refresh. In the last `refresh_cycles` of each `refresh_period` cycles, counted from the cycle of the run's start
      (before the first run from reset), no beat and no response is first presented and `wready` is 0: what would happen
      then happens in the first cycle after. What is presented already can be accepted.

    Reads and writes do not disturb each other. There is no "beat before" the first one after reset. With stall > 0,
    each of the five channels is in each cycle held back with that probability besides (readys are 0; a beat or
    response that is not presented yet waits), by a generator that starts from `seed`: such timing is not predicted.
    """

    latency: int = 20
    """Cycles from an accepted address to the first beat, and from the last written beat to the response; at least 1."""
    interval: int = 1
    """Cycles from beat to beat: 1 is the full width of the bus, 4 a quarter of its bandwidth."""
    refresh_cycles: int = 0
    """Cycles of each refresh period in which the memory moves nothing."""
    refresh_period: int = 1170
    """Cycles from refresh to refresh: 7.8 us at 150 MHz (JESD79-4, tREFI)."""
    stall: float = 0.0
    """Probability that a channel is held back in a cycle; 0 makes the memory deterministic."""
    seed: int = 0
    """Of the random stalls."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least 1, not {value}"
            for name, value in (("latency", self.latency), ("interval", self.interval))
            if value < 1
        ]
        if not 0 <= self.refresh_cycles < self.refresh_period:
            problems.append(
                f"refresh_cycles must be at least 0 and below refresh_period ({self.refresh_period}), "
                f"not {self.refresh_cycles}"
            )
        if not 0 <= self.stall < 1:
            problems.append(f"stall must be at least 0 and below 1, not {self.stall}")
        if problems:
            raise ValueError("memory model: " + "; ".join(problems) + ".")
