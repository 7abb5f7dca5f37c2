"""The longest paths of a placed or routed design, from the delays that nextpnr writes (SDF): one between every two modules."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator

__all__ = ["DelayPath", "longest_paths"]

_CLOCK = re.compile(r"CLK\d?|CLKA|CLKB|WCK")
"""Pins of clocks."""
_DELAY = re.compile(r"\([^:()]+:[^:()]+:([\d.]+)\)")
"""Least, typical and greatest, ps."""
_INSIDE = ("FCI", "FXA", "FXB")
"""Pins within a carry chain or of the multiplexers behind LUTs: what goes on from there is no level of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DelayPath:
    """The longest path from the registers of one module to those of another one, or its own."""

    ns: float
    """From the clock's edge to the next one, setup included."""
    routing_ns: float
    """Of that in wires."""
    levels: int
    """LUTs, carry chains and multipliers."""
    start: str
    """Cell and pin where it begins."""
    end: str
    late: int
    """Ends in that module that what begins in the other one reaches later than a period."""


def longest_paths(sdf: str, period_ns: float) -> list[DelayPath]:
    """Of every pair of modules, the longest first. `sdf`: nextpnr's, of one clock; paths from and to pins are left out."""
    paths = _Paths(sdf)
    groups: dict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    for end, setup in paths.setups.items():
        if end in paths.arrivals:
            groups[_module(paths.first[end]), _module(end)].append((paths.arrivals[end] + setup, end))
    found = []
    for ends in groups.values():
        ns, end = max(ends)
        routing, levels, start = paths.traced(end)
        late = sum(time > period_ns for time, _ in ends)
        found.append(DelayPath(ns=ns, routing_ns=routing, levels=levels, start=start, end=end, late=late))
    return sorted(found, key=lambda path: -path.ns)


class _Paths:
    def __init__(self, sdf: str):
        self.setups: dict[str, float] = {}
        """By pin, as all others: ns."""
        self.arrivals: dict[str, float] = {}
        """The latest after the clock's edge."""
        self.first: dict[str, str] = {}
        """Where the latest comes from."""
        self.before: dict[str, tuple[str, float, bool]] = {}
        """The pin before on that path, the delay from there, and whether it is a wire."""
        self.after: dict[str, list[tuple[str, float, bool]]] = defaultdict(list)
        instance = ""
        for line in sdf.replace("\\", "").splitlines():
            kind, *words = line.strip(" ()").split(" ")
            if kind == "INSTANCE":
                instance = " ".join(words).strip()
            elif kind == "INTERCONNECT" and not _CLOCK.fullmatch(_pin(words[1])):
                self.after[words[0]].append((words[1], _ns(line), True))
            elif kind == "IOPATH" and _CLOCK.fullmatch(words[0]):
                self.arrivals[f"{instance}/{words[1]}"] = _ns(line)
            elif kind == "IOPATH":
                self.after[f"{instance}/{words[0]}"].append((f"{instance}/{words[1]}", _ns(line), False))
            elif kind == "SETUPHOLD":
                end = f"{instance}/{words[1].strip('()')}"
                self.setups[end] = max(float(_DELAY.findall(line)[0]) / 1000, self.setups.get(end, 0.0))
        self.first = {pin: pin for pin in self.arrivals}
        for pin in self.ordered():
            for following, delay, wire in self.after.get(pin, ()):
                late = self.arrivals[pin] + delay if pin in self.arrivals else -1.0
                if late > self.arrivals.get(following, -1.0):
                    self.arrivals[following], self.first[following] = late, self.first[pin]
                    self.before[following] = pin, delay, wire

    def ordered(self) -> Iterator[str]:
        """Pins that others depend on, each before those; a loop is left out with all behind it."""
        waits: dict[str, int] = defaultdict(int)
        for followers in self.after.values():
            for following, _, _ in followers:
                waits[following] += 1
        ready = [pin for pin in self.after if not waits[pin]]
        while ready:
            pin = ready.pop()
            yield pin
            for following, _, _ in self.after.get(pin, ()):
                waits[following] -= 1
                if not waits[following]:
                    ready.append(following)

    def traced(self, end: str) -> tuple[float, int, str]:
        """Of the path that ends in a pin: ns in wires, levels, and the pin where it begins."""
        pin, routing, levels = end, 0.0, 0
        while pin in self.before:
            previous, delay, wire = self.before[pin]
            routing += delay * wire
            levels += not wire and _pin(previous) not in _INSIDE
            pin = previous
        return routing, levels, pin


def _ns(line: str) -> float:
    return max(map(float, _DELAY.findall(line))) / 1000


def _pin(name: str) -> str:
    return name.rpartition("/")[2]


def _module(pin: str) -> str:
    """Instance names of the cell's module, joined by dots."""
    return pin.rpartition("/")[0].rpartition(".")[0]
