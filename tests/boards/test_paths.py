"""Paths in levels: cells, chains, borders of modules."""

import pytest
from amaranth.hdl import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from terrazzo.boards import BOARDS
from terrazzo.boards import synthesis as subject
from terrazzo.boards.netlist import LEVEL, REGISTER, Edge, Logic, UnknownCell, logic
from terrazzo.boards.paths import Module as Composed
from terrazzo.boards.paths import paths
from terrazzo.hw.verilog import generate


def netlist(cells: dict, ports: dict | None = None, names: dict | None = None) -> dict:
    """Yosys's JSON of a module: cells by name as (type, inputs, outputs), pins to lists of nets."""
    return {
        "attributes": {},
        "ports": {name: {"direction": way, "bits": bits} for name, (way, bits) in (ports or {}).items()},
        "cells": {
            name: {
                "type": kind,
                "parameters": {},
                "port_directions": {
                    **dict.fromkeys(inputs, "input"),
                    **dict.fromkeys(outputs, "output"),
                },
                "connections": {**inputs, **outputs},
            }
            for name, (kind, inputs, outputs) in cells.items()
        },
        "netnames": {name: {"bits": bits} for name, bits in (names or {}).items()},
    }


def test_the_longest_of_two_paths_and_its_ends():
    module = netlist(
        {
            "ff_a": ("FDRE", {"D": ["0"], "C": [1]}, {"Q": [2]}),
            "lut_1": ("LUT2", {"I0": [2], "I1": [3]}, {"O": [4]}),
            "lut_2": ("LUT2", {"I0": [4], "I1": [2]}, {"O": [5]}),
            "ff_b": ("FDRE", {"D": [5], "C": [1], "CE": [4]}, {"Q": [6]}),
        },
        {"clk": ("input", [1]), "x": ("input", [3]), "y": ("output", [6, 4])},
        {"first": [2], "second": [9, 6]},
    )
    edges = logic(module).edges
    assert edges[REGISTER, REGISTER] == Edge(2 * LEVEL, "first", "second[1]")
    assert edges["x", REGISTER] == Edge(2 * LEVEL, "x", "second[1]")
    assert edges["x", "y[1]"] == Edge(LEVEL, "x", "y[1]")
    assert edges[REGISTER, "y[1]"] == Edge(LEVEL, "first", "y[1]")


@pytest.mark.parametrize(
    ("kind", "inputs", "outputs", "lengths"),
    [
        ("CARRY8", {"S": [2, 3], "CI": [4]}, {"O": [5, 6]}, {25: 4, 45: 4, 26: 4, 36: 4, 46: 4}),
        ("CARRY4", {"S": [2, 3], "DI": [4, "0"]}, {"CO": [5, 6]}, {25: 2, 45: 2, 26: 2, 36: 2, 46: 2}),
        ("CCU2C", {"A0": [2], "A1": [3], "CIN": [4]}, {"S0": [5], "COUT": [6]}, {25: 5, 45: 1, 26: 5, 36: 5, 46: 1}),
        ("RAM32M", {"ADDRA": [2], "ADDRD": [3], "DIA": [4]}, {"DOA": [5], "DOD": [6]}, {25: 4, 36: 4}),
        ("MUXF7", {"I0": [2], "S": [3]}, {"O": [5]}, {25: 0, 35: 0}),
        ("DSP48E2", {"A": [2], "B": [3]}, {"P": [5]}, {25: 16, 35: 16}),
        ("RAMB36E2", {"ADDRARDADDR": [2]}, {"DOUTADOUT": [5]}, {}),
    ],
)  # fmt: skip
def test_cells(kind, inputs, outputs, lengths):
    """`lengths`: by input net * 10 + output net."""
    nets = [net for bits in inputs.values() for net in bits if net != "0"]
    ports = {str(net): ("input", [net]) for net in nets}
    ports |= {str(net): ("output", [net]) for bits in outputs.values() for net in bits}
    edges = logic(netlist({"cell": (kind, inputs, outputs)}, ports)).edges
    assert {int(a + b): edge.length for (a, b), edge in edges.items() if REGISTER not in (a, b)} == lengths


def test_errors():
    with pytest.raises(UnknownCell, match=r"^cell BUFGCE must be one that .* knows the paths of\.$"):
        logic(netlist({"clock": ("BUFGCE", {"I": [2]}, {"O": [3]})}))
    loop = {"a": ("LUT1", {"I0": [2]}, {"O": [3]}), "b": ("LUT1", {"I0": [3]}, {"O": [2]})}
    with pytest.raises(ValueError, match=r"^logic must not feed itself without a register: "):
        logic(netlist(loop))


def test_paths_across_borders():
    child = Logic(
        {
            (REGISTER, "o"): Edge(3, "state", "o"),
            ("i", REGISTER): Edge(2, "i", "kept"),
            ("i", "o"): Edge(5, "i", "o"),
        },
        {},
    )
    parent = Logic(
        {
            (REGISTER, "a.i"): Edge(1, "from", "a.i"),
            ("a.o", "b.i"): Edge(4, "a.o", "b.i"),
            ("b.o", "y"): Edge(1, "b.o", "y"),
            ("x", "b.i"): Edge(2, "x", "b.i"),
        },
        {"a": "child", "b": "child"},
    )
    module = Composed(parent, {"child": Composed(child, {})})
    assert module.whole == Edge(1 + 5 + 4 + 2, "from", "b.kept")
    assert module.leaving["y"] == Edge(1 + 5 + 4 + 5 + 1, "from", "y")
    assert module.entering["x"].length == 4 and module.through == {"y": {"x": 8}}
    assert module.passes == 1  # through a into b; on from b it ends in a port
    tail = Logic(
        {(REGISTER, "m.x"): Edge(1, "r", "m.x"), ("m.y", "c.i"): Edge(1, "m.y", "c.i")},
        {"m": "parent", "c": "child"},
    )
    assert Composed(tail, {"parent": module, "child": Composed(child, {})}).passes == 1


class Adders(wiring.Component):
    """A sum of two registers in a register, and one that passes through."""

    a: In(signed(32))
    o: Out(signed(32))
    late: Out(signed(32))

    def elaborate(self, platform):
        m = Module()
        first = Signal(signed(32))
        second = Signal(signed(32))
        m.d.sync += [first.eq(self.a), second.eq(first), self.o.eq(first + second)]
        m.d.comb += self.late.eq(self.a + first)
        return m


@pytest.mark.parametrize("board", [pytest.param("zcu102", marks=pytest.mark.full), "ulx3s-85f"])
def test_an_adder_is_a_lut_and_a_level_for_each_8_bits(board, tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "user_cache_dir", lambda name: str(tmp_path / name))
    (row,) = paths(generate(Adders(), "adders"), "adders", BOARDS[board])
    assert row.own.levels == 5 and row.whole.levels == 5 and row.instances == 1
    assert row.whole.start.startswith(("first", "second")) and row.whole.end.startswith("o[")
    assert (
        row.through.start.startswith("a[") and row.through.end.startswith("late[") and row.through.levels == 5
    )
