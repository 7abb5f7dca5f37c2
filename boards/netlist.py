"""Levels of logic in one module of a mapped netlist (Yosys's JSON): the longest paths between its ends.

A level is a LUT, or 8 bits of a carry chain (a CARRY8, two of the CARRY4 that Yosys maps to, four CCU2C); a multiplier
without registers counts as `MULTIPLIER` levels, since it takes about their time. The wide multiplexers behind a LUT in
its slice are part of it. Paths begin and end in registers, block RAMs, the write side of LUT RAMs and multipliers with registers.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

__all__ = ["LEVEL", "MULTIPLIER", "REGISTER", "Edge", "Logic", "UnknownCell", "logic"]

LEVEL = 4
"""Path lengths are counted in quarters of a level."""
MULTIPLIER = 4
"""Levels of a multiplier without registers."""
REGISTER = ""
"""What stands for all ends that hold state; others are bits of ports: "port[bit]" of the module, "instance.port[bit]" of what
it instantiates, without number where there is one."""

_REGISTERED = re.compile(
    r"FD[RSCP]E|SRL16E|SRLC32E|RAMB(18|36)E[12]|URAM288|TRELLIS_FF|DP16KD|PDPW16KD|LD[CP]E"
)
_LOGIC = {
    **{f"LUT{size}": LEVEL for size in range(1, 7)},
    "INV": LEVEL,
    **dict.fromkeys(("MUXF7", "MUXF8", "MUXF9", "PFUMX", "L6MUX21"), 0),
}
_CARRY = {"CARRY4": LEVEL // 2, "CARRY8": LEVEL}
_MULTIPLIERS = ("DSP48E1", "DSP48E2", "MULT18X18D")
_RAM = re.compile(r"RAM\d+(X1D|X1S|M|M16|M8)|TRELLIS_DPR16X4")
_RAM_READS = (
    (r"DPRA\d*", r"DPO"),
    (r"A\d*", r"SPO|O"),
    (r"RAD", r"DO"),
    *((f"ADDR{place}", f"DO{place}") for place in "ABCDEFGH"),
)
"""Address and output pins of LUT RAMs."""


class UnknownCell(ValueError):
    """A netlist has a cell of unknown timing."""


@dataclasses.dataclass(frozen=True)
class Edge:
    """The longest path between two ends."""

    length: int
    """Quarters of a level."""
    start: str
    """Name of the register or port where it begins."""
    end: str


@dataclasses.dataclass(frozen=True)
class Logic:
    """What timing needs of a module."""

    edges: dict[tuple[str, str], Edge]
    """By the ends' names; all that hold state are REGISTER."""
    instances: dict[str, str]
    """Modules that it instantiates, by the instance's name."""

    def to_dict(self) -> dict:
        """For a JSON file."""
        edges = [[*ends, edge.length, edge.start, edge.end] for ends, edge in self.edges.items()]
        return {"edges": edges, "instances": self.instances}

    @classmethod
    def from_dict(cls, value: Mapping) -> Logic:
        """The inverse of `to_dict`."""
        return cls({(start, end): Edge(*edge) for start, end, *edge in value["edges"]}, value["instances"])


def logic(module: Mapping) -> Logic:
    """All pairs of ends between which there is a path. `module` is an entry of "modules" in Yosys's JSON. Raises UnknownCell;
    ValueError where logic feeds itself without a register."""
    paths = _Paths(module)
    return Logic(paths.edges(), paths.instances)


class _Paths:
    def __init__(self, module: Mapping):
        self.names = _names(module)
        self.arcs: dict[int, list[tuple[int, int]]] = defaultdict(list)
        """Of a net: those that it depends on, and the length."""
        self.starts: dict[int, str] = {}
        self.ends: list[tuple[int, str, str]] = []
        """Net, end, name of the end."""
        self.instances: dict[str, str] = {}
        for name, port in module["ports"].items():
            for index, net in _bits(port["bits"]):
                bit = _indexed(name, index, len(port["bits"]))
                if port["direction"] == "input":
                    self.starts[net] = bit
                else:
                    self.ends.append((net, bit, bit))
        for name, cell in module["cells"].items():
            self.cell(name, cell)

    def cell(self, name: str, cell: Mapping) -> None:
        kind, pins = cell["type"], cell["connections"]
        inputs = {pin: bits for pin, bits in pins.items() if cell["port_directions"].get(pin) != "output"}
        outputs = {pin: bits for pin, bits in pins.items() if cell["port_directions"].get(pin) == "output"}
        if kind in _LOGIC:
            self.depends(outputs, inputs, _LOGIC[kind])
        elif kind in _CARRY:
            self.carry(pins, _CARRY[kind])
        elif kind == "CCU2C":
            self.carry_pair(pins)
        elif kind in _MULTIPLIERS and not _multiplier_registers(cell):
            self.depends(outputs, inputs, MULTIPLIER * LEVEL)
        elif _RAM.fullmatch(kind):
            self.stateful(name, inputs, outputs)
            for address, output in _RAM_READS:
                read = {pin: bits for pin, bits in inputs.items() if re.fullmatch(address, pin)}
                for pin, bits in outputs.items():
                    if re.fullmatch(output, pin):
                        self.depends({pin: bits}, read, LEVEL)
        elif _REGISTERED.fullmatch(kind) or kind in _MULTIPLIERS:
            self.stateful(name, inputs, outputs)
        elif kind.startswith("$") or kind.isupper():
            raise UnknownCell(f"cell {kind} must be one that boards/netlist.py knows the paths of.")
        else:
            self.instances[name] = kind
            self.instance(name, inputs, outputs)

    def depends(self, outputs: Mapping, inputs: Mapping, length: int) -> None:
        """Each output on all inputs."""
        sources = [(net, length) for bits in inputs.values() for _, net in _bits(bits)]
        for bits in outputs.values():
            for _, net in _bits(bits):
                self.arcs[net] += sources

    def carry(self, pins: Mapping, length: int) -> None:
        """Sums and carries on what is below them."""
        below = [(net, length) for pin in ("CI", "CYINIT", "CI_TOP") for _, net in _bits(pins.get(pin, ()))]
        for i in range(len(pins["S"])):
            for pin in ("S", "DI"):
                below += [(net, length) for _, net in _bits(pins.get(pin, ())[i : i + 1])]
            for pin in ("O", "CO"):
                for _, net in _bits(pins.get(pin, ())[i : i + 1]):
                    self.arcs[net] += below

    def carry_pair(self, pins: Mapping) -> None:
        """Two bits of ECP5's chain, with a LUT in front of each."""
        below = [(net, LEVEL // 4) for _, net in _bits(pins.get("CIN", ()))]
        for i in range(2):
            for pin in "ABCD":
                below += [(net, LEVEL + LEVEL // 4) for _, net in _bits(pins.get(f"{pin}{i}", ()))]
            for _, net in _bits(pins.get(f"S{i}", ())):
                self.arcs[net] += below
        for _, net in _bits(pins.get("COUT", ())):
            self.arcs[net] += below

    def stateful(self, name: str, inputs: Mapping, outputs: Mapping) -> None:
        held = [net for bits in outputs.values() for _, net in _bits(bits)]
        for net in held:
            self.starts[net] = REGISTER
        label = next((self.names[net] for net in held if net in self.names), name)
        for pin, bits in inputs.items():
            for _, net in _bits(bits):
                self.ends.append((net, REGISTER, label if pin == "D" else f"{label} ({pin})"))

    def instance(self, name: str, inputs: Mapping, outputs: Mapping) -> None:
        for pin, bits in outputs.items():
            for index, net in _bits(bits):
                self.starts[net] = _indexed(f"{name}.{pin}", index, len(bits))
        for pin, bits in inputs.items():
            for index, net in _bits(bits):
                bit = _indexed(f"{name}.{pin}", index, len(bits))
                self.ends.append((net, bit, bit))

    def edges(self) -> dict[tuple[str, str], Edge]:
        reach: dict[int, dict[str, tuple[int, int]]] = {
            net: {tag: (0, net)} for net, tag in self.starts.items()
        }
        """Of a net, by where paths begin: length, and the net in which the longest one begins."""
        for net in self.ordered():
            found = reach.setdefault(net, {})
            for source, length in self.arcs[net]:
                for tag, (before, first) in reach.get(source, {}).items():
                    if tag not in found or found[tag][0] < before + length:
                        found[tag] = (before + length, first)
        result: dict[tuple[str, str], Edge] = {}
        for net, end, label in self.ends:
            for start, (length, first) in reach.get(net, {}).items():
                if (start, end) not in result or result[start, end].length < length:
                    result[start, end] = Edge(length, self.names.get(first, start), label)
        return result

    def ordered(self) -> Iterator[int]:
        """Nets that depend on others, each after those."""
        waits = {
            net: {source for source, _ in arcs if source in self.arcs} for net, arcs in self.arcs.items()
        }
        readers = defaultdict(list)
        for net, sources in waits.items():
            for source in sources:
                readers[source].append(net)
        ready = [net for net, sources in waits.items() if not sources]
        count = {net: len(sources) for net, sources in waits.items()}
        left = len(waits)
        while ready:
            net = ready.pop()
            left -= 1
            yield net
            for reader in readers[net]:
                count[reader] -= 1
                if not count[reader]:
                    ready.append(reader)
        if left:
            stuck = sorted(self.names.get(net, str(net)) for net, number in count.items() if number)[:4]
            raise ValueError(f"logic must not feed itself without a register: {', '.join(stuck)}.")


def _bits(bits) -> Iterator[tuple[int, int]]:
    """Index and net of the bits that are no constants."""
    return ((index, net) for index, net in enumerate(bits) if isinstance(net, int))


def _indexed(name: str, index: int, width: int) -> str:
    return name if width == 1 else f"{name}[{index}]"


def _names(module: Mapping) -> dict[int, str]:
    """A name of each net: of the design's own if there is one."""
    names: dict[int, str] = {}
    for hidden in (1, 0):
        for name, wire in module["netnames"].items():
            if wire.get("hide_name", 0) == hidden:
                for index, net in _bits(wire["bits"]):
                    names[net] = _indexed(name.lstrip("\\"), index, len(wire["bits"]))
    return names


def _multiplier_registers(cell: Mapping) -> bool:
    """Whether a path through a multiplier ends in it."""
    parameters = cell["parameters"]
    if cell["type"].startswith("DSP48"):
        return any(int(str(parameters.get(name, "0")), 2) for name in ("MREG", "PREG", "AREG", "BREG"))
    return any(str(value) != "NONE" for name, value in parameters.items() if name.startswith("REG_"))
