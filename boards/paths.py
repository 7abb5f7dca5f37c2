"""The longest path of every module of a mapped netlist, in levels, and the paths that cross borders of modules."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping

from ..hw.verilog import module_instances
from .board import Board
from .netlist import LEVEL, REGISTER, Edge, Logic
from .synthesis import logic

__all__ = ["ModulePaths", "Path", "paths"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Path:
    """From one end to another."""

    levels: int
    """LUTs and carry chains; `netlist` says how they count."""
    start: str
    """Name of the register, port or memory where it begins; those below other modules stand behind the instances' names."""
    end: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModulePaths:
    """What a module has of paths."""

    module: str
    instances: int
    own: Path
    """The longest in the module's own logic; its ports and those of what it instantiates are ends."""
    whole: Path
    """The longest from register to register in the module and through modules below it, but for those inside of one."""
    through: Path | None
    """The longest from an input port to an output port; None where all ports have a register on the way."""
    passes: int
    """How many modules below it a path from register to register goes through, into an input and out of an output, at most."""


def paths(
    verilog: str, top: str, board: Board, progress: Callable[[str], None] | None = None
) -> list[ModulePaths]:
    """The paths of each distinct module of `hw.verilog.generate`'s text as `board`'s flow maps it, the longest first.

    Modules are synthesised as for `synthesis.count`, and cached with its results. Raises SynthesisError.
    """
    own, instances = logic(verilog, top, board, progress), module_instances(verilog)
    rows, done = [], {}
    for name in reversed(instances):
        module = done[name] = Module(own[name], done)
        through = [
            Edge(length, start, end)
            for end, starts in module.through.items()
            for start, length in starts.items()
        ]
        rows.append(
            ModulePaths(
                module=name,
                instances=instances[name],
                own=_path(max(own[name].edges.values(), key=_length, default=_NOTHING)),
                whole=_path(module.whole),
                through=_path(max(through, key=_length)) if through else None,
                passes=module.passes,
            )
        )
    return sorted(rows, key=lambda row: (-row.own.levels, row.module))


_NOTHING = Edge(0, "", "")


def _path(edge: Edge) -> Path:
    return Path(levels=-(-edge.length // LEVEL), start=edge.start, end=edge.end)


class Module:
    """A module with all that is below it."""

    def __init__(self, own: Logic, modules: Mapping[str, Module]):
        """`modules`: those below, by name. ValueError where logic feeds itself across borders."""
        self.below = {name: modules[kind] for name, kind in own.instances.items()}
        self.into: dict[str, list[tuple[str, Edge]]] = defaultdict(list)
        """By end: where paths to it begin."""
        for (start, end), edge in own.edges.items():
            self.into[end].append((start, edge))
        self._arrivals: dict[str, dict[str, Edge] | None] = {}

        self.leaving: dict[str, Edge] = {}
        """By bit of an output port: from registers."""
        self.entering: dict[str, Edge] = {}
        """By bit of an input port: to registers."""
        self.through: dict[str, dict[str, int]] = defaultdict(dict)
        """By output and input bit: lengths."""
        self.whole = _NOTHING
        self._passed: dict[str, int] = {}
        self.passes = 0
        """Modules below that a path from register to register goes through, at most."""
        for end in self.into:
            instance, _, port = end.rpartition(".")
            if instance:
                self.ends(end, _inside(instance, self.below[instance].entering.get(port)))
            elif end == REGISTER:
                self.ends(end, _NOTHING)
            else:
                for start, edge in self.arrivals(end).items():
                    if start == REGISTER:
                        self.leaving[end] = edge
                    else:
                        self.through[end][start] = edge.length

    def ends(self, end: str, rest: Edge | None) -> None:
        """Paths that end in a register: `rest` goes on from `end`."""
        if rest is None:
            return
        self.passes = max(self.passes, self.passed(end))
        for start, edge in self.arrivals(end).items():
            path = Edge(edge.length + rest.length, edge.start, rest.end or edge.end)
            if start == REGISTER:
                self.whole = max(self.whole, path, key=_length)
            else:
                self.entering[start] = max(self.entering.get(start, _NOTHING), path, key=_length)

    def arrivals(self, end: str) -> dict[str, Edge]:
        """The longest paths to an end, by where they begin: REGISTER or an input port."""
        if end in self._arrivals:
            if self._arrivals[end] is None:
                raise ValueError(f"logic must not feed itself across borders of modules: {end}.")
            return self._arrivals[end]
        self._arrivals[end], found = None, {}

        def add(start: str, path: Edge) -> None:
            if start not in found or found[start].length < path.length:
                found[start] = path

        for start, edge in self.into[end]:
            instance, _, port = start.rpartition(".")
            if not instance:
                add(start, edge)
                continue
            for first, before in self.outputs(instance, port).items():
                add(first, Edge(before.length + edge.length, before.start, edge.end))
        self._arrivals[end] = found
        return found

    def passed(self, end: str) -> int:
        """Modules below that the paths from registers to an end go through, at most; -1 where there are none."""
        if end not in self._passed:
            most = -1
            for start, _ in self.into[end]:
                instance, _, port = start.rpartition(".")
                if not instance:
                    most = max(most, 0 if start == REGISTER else -1)
                    continue
                child = self.below[instance]
                most = max(most, 0 if port in child.leaving else -1)
                for first in child.through.get(port, {}):
                    before = self.passed(f"{instance}.{first}") if f"{instance}.{first}" in self.into else -1
                    most = max(most, before + 1 if before >= 0 else -1)
            self._passed[end] = most
        return self._passed[end]

    def outputs(self, instance: str, port: str) -> dict[str, Edge]:
        """The longest paths to an output of a module below, likewise."""
        child, found = self.below[instance], {}
        if port in child.leaving:
            found[REGISTER] = _inside(instance, child.leaving[port])
        for start, length in child.through.get(port, {}).items():
            if f"{instance}.{start}" not in self.into:
                continue
            for first, before in self.arrivals(f"{instance}.{start}").items():
                if first not in found or found[first].length < before.length + length:
                    found[first] = Edge(before.length + length, before.start, "")
        return found


def _length(edge: Edge) -> int:
    return edge.length


def _inside(instance: str, edge: Edge | None) -> Edge | None:
    """A child's path with the names of its ends as the parent sees them."""
    return edge and Edge(edge.length, f"{instance}.{edge.start}", f"{instance}.{edge.end}")
