"""The chains of DSP48E1 against sums of products and the portable chain: every pair of weights and of operands at every
tap, every combination of extreme ones, and random ones."""

import subprocess
from pathlib import Path

import pytest

import terrazzo.boards
from terrazzo.boards.dsp48e1 import SHORT_QUAD, SHORT_TAPS, DspChain
from terrazzo.hw import verilator
from terrazzo.hw.lanes.chain import PAIR, QUAD, TAPS, Chain, SplitChain
from terrazzo.hw.verilog import generate

MODEL = Path(terrazzo.boards.__file__).with_name("dsp48e1.v")
TOP = """
module both(input clk, input [15:0] low, high, input [71:0] operand, output [43:0] gold_sum, gate_sum);
  reg [3:0] low_2, low_3, low_4, high_2, high_3, high_4;
  reg [17:0] operand_2, operand_3, operand_4;
  always @(posedge clk) begin
    {low_2, high_2, operand_2} <= {low[11:8], high[11:8], operand[53:36]};
    {low_3, high_3, operand_3} <= {low[15:12], high[15:12], operand[71:54]};
    {low_4, high_4, operand_4} <= {low_3, high_3, operand_3};
  end
  wire [15:0] lows = {low_4, low_2, low[7:0]}, highs = {high_4, high_2, high[7:0]};
  wire [71:0] operands = {operand_4, operand_2, operand[35:0]};
  gold gold(.clk(clk), .low(lows), .high(highs), .operand(operands), .sum(gold_sum));
  gate gate(.clk(clk), .low(lows), .high(highs), .operand(operands), .sum(gate_sum));
endmodule
"""
MAIN = r"""
#include "Vboth.h"
#include <cstdio>
#include <random>
static const int LATENCY = 6, TAPS = 4;
struct Tap { int low, high, left, right; };
static Vboth top;
static long cycle = 0, checked = 0;
static uint64_t expected[LATENCY + 1];
static bool step(const Tap* taps) {
  uint32_t low = 0, high = 0;
  unsigned __int128 words = 0;
  int sums[4] = {0, 0, 0, 0};
  for (int i = 0; i < TAPS; ++i) {
    const Tap& t = taps[i];
    low |= uint32_t(t.low & 15) << 4 * i;
    high |= uint32_t(t.high & 15) << 4 * i;
    words |= (unsigned __int128)((t.left + t.right * 2048) & 0x3ffff) << 18 * i;
    sums[0] += t.low * t.left, sums[1] += t.low * t.right, sums[2] += t.high * t.left, sums[3] += t.high * t.right;
  }
  top.low = low, top.high = high;
  for (int i = 0; i < 3; ++i) top.operand[i] = uint32_t(words >> 32 * i);
  uint64_t word = 0;
  for (int i = 0; i < 4; ++i) word |= uint64_t((sums[i] + (i < 3 ? 1024 : 0)) & 2047) << 11 * i;
  expected[cycle % (LATENCY + 1)] = word;
  top.clk = 0, top.eval(), top.clk = 1, top.eval();
  ++cycle;
  if (cycle < LATENCY) return true;
  ++checked;
  uint64_t wanted = expected[(cycle - LATENCY) % (LATENCY + 1)];
  return top.gate_sum == wanted && top.gold_sum == wanted;
}
int main() {
  bool equal = true;
  Tap taps[TAPS];
  for (int at = 0; at < TAPS; ++at)
    for (int value = 0; value < 1 << 20; ++value) {
      for (Tap& tap : taps) tap = {0, 0, 0, 0};
      taps[at] = {(value & 15) - 8, (value >> 4 & 15) - 8, (value >> 8 & 63) - 32, (value >> 14 & 63) - 32};
      equal &= step(taps);
    }
  const int ends[2][4] = {{-7, 7, -32, 31}, {-8, 7, -31, 31}};
  for (const auto& end : ends)
    for (int value = 0; value < 1 << 16; ++value) {
      for (int i = 0; i < TAPS; ++i) {
        int bits = value >> 4 * i;
        taps[i] = {end[bits & 1], end[bits >> 1 & 1], end[2 + (bits >> 2 & 1)], end[2 + (bits >> 3 & 1)]};
      }
      equal &= step(taps);
    }
  std::mt19937 random(1);
  for (int number = 0; number < 200000; ++number) {
    int kind = number & 1;
    auto some = [&](int first, int last) { return int(random() % (last - first + 1)) + first; };
    for (Tap& tap : taps)
      tap = {some(-7 - kind, 7), some(-7 - kind, 7), some(-32 + kind, 31), some(-32 + kind, 31)};
    equal &= step(taps);
  }
  std::printf("%ld %s\n", checked, equal ? "equal" : "different");
}
"""


def compared(directory: Path, model: str) -> list[str]:
    """Number of compared sums, and whether all were equal."""
    (directory / "both.v").write_text(TOP)
    (directory / "gold.v").write_text(generate(Chain(QUAD), "gold"))
    (directory / "gate.v").write_text(generate(DspChain(QUAD), "gate"))
    (directory / "model.v").write_text(model)
    (directory / "main.cpp").write_text(MAIN)
    arguments = ["--cc", "--exe", "main.cpp", "-Wno-fatal", "-Wno-lint", "--top-module", "both"]
    run = verilator.verilate([*arguments, "both.v", "gold.v", "gate.v", "model.v"], directory)
    assert run.returncode == 0, run.stderr
    verilator.make(directory / "obj_dir", "Vboth.mk", "Vboth", {"OPT_FAST": "-O2"})
    return subprocess.check_output([directory / "obj_dir" / "Vboth"], text=True).split()


def test_every_product_and_extreme_sums(tmp_path):
    cycles = TAPS * 2**20 + 2 * 2**16 + 200_000
    assert compared(tmp_path, MODEL.read_text()) == [str(cycles - Chain.LATENCY + 1), "equal"]


@pytest.mark.full
@pytest.mark.parametrize(
    "right, wrong",
    [("pre_d + pre_a", "pre_d - pre_a"), ("3'b011 ? c", "3'b011 ? 48'd0"), ("3'b001 ? PCIN", "3'b001 ? P")],
)
def test_another_slice_is_found(tmp_path, right, wrong):
    model = MODEL.read_text()
    assert right in model
    assert compared(tmp_path, model.replace(right, wrong))[1] == "different"


@pytest.mark.parametrize("weight, operand", [(-7, -32), (-8, -31)])
def test_fields_hold_their_sums(weight, operand):
    assert SHORT_TAPS * weight * operand < 1 << (SHORT_QUAD.field_bits - 1)


def test_pairs_are_split():
    """Two 8-bit weights side by side exceed the pre-adder."""
    assert generate(DspChain(PAIR), "chain") == generate(SplitChain(PAIR), "chain")
