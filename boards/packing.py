"""Registers of ECP5's multipliers and block RAMs: flip-flops around such a cell move into it, which Yosys leaves undone.

Through a multiplier without registers a path takes 3.9 ns, into its output register 3.5 ns and out of that 0.7 ns; a block RAM
gives a word 5.8 ns after the clock, its output register 1.0 ns (nextpnr 0.11.1, speed grade 6). Behind its own register a cell
also needs no second wire in the same cycle.

Input registers of multipliers stay unused: with them, ends that are late after placement were as many (docs/status.md).

Facts. The registers are 0 after power-up, as flip-flops with REGSET "RESET" are. A block RAM's output register has an enable of
its own, OCE, which CE does not gate; where a port is 36 bits wide, both halves of a word are read by port B's clock and enable,
and the register is set for both (Lattice's simulation model of the same cell in ECP3, DP16KC). nextpnr writes no enable of
a multiplier's output register, so that flip-flops with one stay outside.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping

__all__ = ["Packed", "packed"]

_Bit = int | str
"""A net, or a constant "0", "1", "x"."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
    """A netlist with the registers in place, and flip-flops that moved."""

    module: dict
    """As `packed` takes."""
    product: int
    """Into output registers of multipliers"""
    memory: int
    """and output registers of block RAMs."""


def packed(module: Mapping) -> Packed:
    """A flat mapped module of Yosys's JSON ("ports", "cells" ...), which is not changed, with registers moved.

    Flip-flops move behind a multiplier or a read port of a block RAM where each bit that is read drives the data input of one
    flip-flop and nothing else, those have the same clock and no reset, and start at 0. A block RAM's may have one enable, and
    the port's clock is theirs. Names of nets that vanish stay without driver.
    """
    netlist = _Netlist(module)
    counts = {"product": 0, "memory": 0}
    for name in netlist.of("DP16KD"):
        counts["memory"] += _read(netlist, name)
    for name in netlist.of("MULT18X18D"):
        counts["product"] += _product(netlist, name)
    return Packed(module={**module, "cells": netlist.cells}, **counts)


@dataclasses.dataclass(frozen=True)
class _Register:
    """A flip-flop that may move."""

    name: str
    output: _Bit
    clock: _Bit
    enable: _Bit | None


class _Netlist:
    def __init__(self, module: Mapping):
        self.cells = dict(module["cells"])
        self.readers = defaultdict(set)
        """Cells' ports, or ("", port) of the module, by net."""
        for port, entry in module["ports"].items():
            for bit in entry["bits"]:
                self.readers[bit].add(("", port))
        for name, cell in self.cells.items():
            for port, bits in cell["connections"].items():
                if cell["port_directions"][port] != "output":
                    for bit in bits:
                        self.readers[bit].add((name, port))

    def of(self, kind: str) -> list[str]:
        return [name for name, cell in self.cells.items() if cell["type"] == kind]

    def register(self, name: str) -> _Register | None:
        """The flip-flop, if it has no reset, starts at 0 and rises with its clock."""
        cell = self.cells[name]
        nets = {port: bits[0] for port, bits in cell["connections"].items()}
        parameters = {key: str(value).strip() for key, value in cell["parameters"].items()}
        enables = {"1": None, "CE": nets.get("CE")}
        movable = (
            nets.get("LSR", "0") == "0"
            and parameters.get("LSRMUX", "LSR") == "LSR"
            and parameters.get("LSRMODE", "LSR") == "LSR"
            and parameters.get("CLKMUX", "CLK") == "CLK"
            and parameters.get("REGSET", "RESET") == "RESET"
            and parameters.get("CEMUX", "1") in enables
            and {"DI", "Q", "CLK"} <= nets.keys() <= {"DI", "Q", "CLK", "LSR", "CE"}
        )
        if not movable:
            return None
        enable = enables[parameters.get("CEMUX", "1")]
        return _Register(name, nets["Q"], nets["CLK"], enable)

    def behind(self, name: str, ports: Iterable[str]) -> dict[str, _Register] | None:
        """Of outputs that are read: the one reader, a flip-flop. None where another reads, or their clocks or enables differ."""
        found = {}
        for port in ports:
            (bit,) = self.cells[name]["connections"].get(port, ["x"])
            readers = self.readers[bit] if bit != "x" else ()
            if not readers:
                continue
            (reader, entry), *others = readers
            if others or not reader or entry != "DI" or self.cells[reader]["type"] != "TRELLIS_FF":
                return None
            found[port] = self.register(reader)
        return found if _alike(found.values()) else None

    def change(self, name: str, nets: Mapping[str, _Bit], parameters: Mapping[str, str]) -> None:
        """Other nets at a cell's ports, further inputs, and parameters."""
        old = self.cells[name]
        for port, bit in nets.items():
            for known in old["connections"].get(port, ()):
                self.readers[known].discard((name, port))
            if old["port_directions"].get(port, "input") == "input":
                self.readers[bit].add((name, port))
        self.cells[name] = {
            **old,
            "parameters": {**old["parameters"], **parameters},
            "port_directions": {**dict.fromkeys(nets, "input"), **old["port_directions"]},
            "connections": {**old["connections"], **{port: [bit] for port, bit in nets.items()}},
        }

    def remove(self, register: _Register) -> None:
        for port, (bit,) in self.cells.pop(register.name)["connections"].items():
            self.readers[bit].discard((register.name, port))


def _alike(registers: Iterable[_Register | None]) -> bool:
    """Some flip-flops, all movable, of one clock and enable."""
    registers = list(registers)
    return None not in registers and len({(one.clock, one.enable) for one in registers}) == 1


def _read(netlist: _Netlist, name: str) -> int:
    """Flip-flops that moved into the output registers of a block RAM's ports."""
    cell = netlist.cells[name]
    wide = any(int(cell["parameters"].get(f"DATA_WIDTH_{port}", "10010"), 2) == 36 for port in "AB")
    # Halves of a wide word are read together, by port B.
    moves = [("AB", "B")] if wide else [("A", "A"), ("B", "B")]
    return sum(_word(netlist, name, halves, port) for halves, port in moves)


def _word(netlist: _Netlist, name: str, halves: str, port: str) -> int:
    """Flip-flops behind the data of some halves, which a port reads."""
    cell = netlist.cells[name]
    registers = netlist.behind(name, [f"DO{half}{i}" for half in halves for i in range(18)])
    fixed = all(cell["connections"].get(f"RST{half}", ["0"]) == ["0"] for half in halves)
    fresh = all(cell["parameters"].get(f"REGMODE_{half}", "NOREG") == "NOREG" for half in halves)
    plain = cell["parameters"].get(f"CLK{port}MUX", f"CLK{port}") == f"CLK{port}"
    if not registers or not fixed or not fresh or not plain:
        return 0
    first = next(iter(registers.values()))
    if cell["connections"][f"CLK{port}"] != [first.clock]:
        return 0
    enable = "1" if first.enable is None else first.enable
    outputs = {at: one.output for at, one in registers.items()}
    for one in registers.values():
        netlist.remove(one)
    netlist.change(
        name,
        {**outputs, **{f"OCE{half}": enable for half in halves}},
        {f"REGMODE_{half}": "OUTREG" for half in halves},
    )
    return len(registers)


def _product(netlist: _Netlist, name: str) -> int:
    """Flip-flops that moved into a multiplier's output register."""
    registers = netlist.behind(name, [f"P{i}" for i in range(36)])
    parameters = netlist.cells[name]["parameters"]
    kinds = ("INPUTA", "INPUTB", "INPUTC", "PIPELINE", "OUTPUT")
    fresh = all(parameters.get(f"REG_{kind}_CLK", "NONE") == "NONE" for kind in kinds)
    if not registers or not fresh:
        return 0
    first = next(iter(registers.values()))
    if first.enable is not None:
        return 0
    outputs = {at: one.output for at, one in registers.items()}
    for one in registers.values():
        netlist.remove(one)
    netlist.change(name, {**outputs, "CLK0": first.clock}, {"REG_OUTPUT_CLK": "CLK0"})
    return len(registers)
