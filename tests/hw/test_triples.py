"""Three Fixed-4 lanes in a multiplier: proofs by SAT (yosys) that weights are packed and sums told apart as they should be, for all
values, and rows of two products with every product, every extreme sum, and random ones."""

import subprocess

import pytest
from amaranth.hdl import Assert, Assume, Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from terrazzo.arch.schemes import Scheme
from terrazzo.hw import verilator
from terrazzo.hw.lanes import LATENCY, Row
from terrazzo.hw.lanes.fixed4_triples import fields
from terrazzo.hw.lanes.triple_chain import packed
from terrazzo.hw.verilog import generate

from .test_formal import prove
from .test_lanes import Prepared


class PackingClaims(wiring.Component):
    """The two words of any three weights differ by these, 11 bits apart."""

    def __init__(self):
        super().__init__({f"weight_{i}": In(signed(4)) for i in range(3)})

    def elaborate(self, platform):
        m = Module()
        weights = [self.weight_0, self.weight_1, self.weight_2]
        positive, negative = packed([weight.as_unsigned() for weight in weights])
        together = sum(weight << (11 * i) for i, weight in enumerate(weights))
        m.d.comb += Assert(positive - negative == together)
        return m


class FieldClaims(wiring.Component):
    """Sums of -2047..2047 are found in their word, when it is known whether the upper ones are odd."""

    def __init__(self):
        super().__init__({f"sum_{i}": In(signed(12)) for i in range(3)})

    def elaborate(self, platform):
        m = Module()
        sums = [self.sum_0, self.sum_1, self.sum_2]
        word = sum(one << (11 * i) for i, one in enumerate(sums))[:34].as_signed()
        m.d.comb += [Assume(one != -2048) for one in sums]
        found = fields(word, [self.sum_1[0], self.sum_2[0]])
        m.d.comb += [Assert(value + carry == one) for (value, carry), one in zip(found, sums, strict=True)]
        return m


@pytest.mark.parametrize("claims", [PackingClaims, FieldClaims])
def test_proof(claims, tmp_path):
    said = prove(claims(), tmp_path)
    assert "Induction step proven: SUCCESS!" in said, said[-3000:]


def test_sums_of_two_legal_products():
    """What the fields are told apart for: of weights, and of keys and values."""
    assert 2 * 7 * 128 <= 2047 and 2 * 8 * 127 <= 2047 < 2 * 8 * 128


MAIN = r"""
#include "Vrow.h"
#include <cstdio>
#include <random>
static const int LATENCY = %d;
static Vrow top;
static uint32_t expected[16][3];
static long cycle = 0, wrong = 0;
static void step(const int* w, const int* v, int x, int y) {
  uint32_t codes = 0;
  for (int lane = 0; lane < 3; ++lane) {
    codes |= uint32_t(w[lane] & 15 | (v[lane] & 15) << 4) << 8 * lane;
    expected[cycle & 15][lane] = uint32_t(w[lane] * x + v[lane] * y) & 0x7ffffff;
  }
  top.weights = codes, top.operand = uint32_t(x & 511 | (y & 511) << 9), top.valid = top.first = 1;
  top.clk = 0, top.eval(), top.clk = 1, top.eval();
  if (++cycle <= LATENCY) return;
  const uint32_t* then = expected[(cycle - 1 - LATENCY) & 15];
  for (int lane = 0; lane < 3; ++lane) {
    int at = 27 * lane, word = at / 32, bit = at %% 32;
    uint64_t two = top.sums[word] | (word < 2 ? uint64_t(top.sums[word + 1]) << 32 : 0);
    wrong += (uint32_t(two >> bit) & 0x7ffffff) != then[lane];
  }
}
int main() {
  std::mt19937 random(1);
  auto some = [&](int first, int last) { return int(random() %% (last - first + 1)) + first; };
  int w[3], v[3];
  for (int swap = 0; swap < 2; ++swap)
    for (int codes = 0; codes < 4096; ++codes)
      for (int x = -128; x < 128; ++x) {
        for (int lane = 0; lane < 3; ++lane) w[lane] = (codes >> 4 * lane & 15) - 8, v[lane] = 0;
        if (swap) step(v, w, 0, x); else step(w, v, x, 0);
      }
  const int ends[2][4] = {{-7, 7, -128, 127}, {-8, 7, -127, 127}};
  for (const auto& end : ends)
    for (int value = 0; value < 256; ++value) {
      for (int lane = 0; lane < 3; ++lane) w[lane] = end[value >> 2 * lane & 1], v[lane] = end[value >> 2 * lane + 1 & 1];
      step(w, v, end[2 + (value >> 6 & 1)], end[2 + (value >> 7 & 1)]);
    }
  for (int number = 0; number < 4000000; ++number) {
    int dynamic = number & 1;
    for (int lane = 0; lane < 3; ++lane) w[lane] = some(-7 - dynamic, 7), v[lane] = some(-7 - dynamic, 7);
    step(w, v, some(-128 + dynamic, 127), some(-128 + dynamic, 127));
  }
  std::printf("%%ld %%ld\n", cycle, wrong);
}
"""


@pytest.mark.full
def test_every_product_and_extreme_sums(tmp_path):
    row = Prepared(Row(Scheme.FIXED4, 1, 2, "fixed4_triples"))
    (tmp_path / "row.v").write_text(generate(row, "row"))
    (tmp_path / "main.cpp").write_text(MAIN % LATENCY)
    arguments = ["--cc", "--exe", "main.cpp", "-Wno-fatal", "-Wno-lint", "--top-module", "row"]
    run = verilator.verilate([*arguments, "row.v"], tmp_path)
    assert run.returncode == 0, run.stderr
    verilator.make(tmp_path / "obj_dir", "Vrow.mk", "Vrow", {"OPT_FAST": "-O2"})
    said = subprocess.check_output([tmp_path / "obj_dir" / "Vrow"], text=True)
    assert said.split() == [str(2 * 2**20 + 2 * 256 + 4_000_000), "0"]
